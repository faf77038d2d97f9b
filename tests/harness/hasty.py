"""virtagentd that gives a program over its limit only a moment between SIGTERM and SIGKILL."""

import sys

from virtagent.supervisor import main
from virtagent.supervisor.core import options

if __name__ == "__main__":
    options.EXEC_GRACE = 0.2
    sys.exit(main.main())
