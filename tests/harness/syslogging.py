"""virtagentd that finds its syslog at VIRTAGENT_SYSLOG; it takes virtagentd's options."""

from __future__ import annotations

import functools
import os
import sys

from virtagent.supervisor import main
from virtagent.supervisor.io import log

if __name__ == "__main__":
    main.syslog = functools.partial(log.syslog, os.environ["VIRTAGENT_SYSLOG"])
    sys.exit(main.main())
