"""virtagentd in one file: for cloud-init, and for a rescue where nothing can be installed.

Called by a name with "qemu-ga" in it, it is virtagent-qemu-ga. What is not installed on this machine is taken from the
folder `pure` in this file, written in Python.
"""

import linecache
import os
import sys

sys.path.append(os.path.join(sys.path[0], "pure"))
# A traceback in the log would otherwise read its lines from this file, which may lie on what is frozen.
linecache.updatecache = lambda *_args, **_more: []

if "qemu-ga" in os.path.basename(sys.argv[0]):
    from virtagent.supervisor.qemu_ga import main
else:
    from virtagent.supervisor.main import main

sys.exit(main())
