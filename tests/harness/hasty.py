"""virtagentd that gives a program over its limit only a moment between SIGTERM and SIGKILL."""

import sys

from virtagent.supervisor import core, main

if __name__ == "__main__":
    core.EXEC_GRACE = 0.2
    sys.exit(main.main())
