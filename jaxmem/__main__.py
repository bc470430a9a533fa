"""`python -m jaxmem COMMAND` is `jaxmem COMMAND`."""

import sys

from .cli import main

sys.exit(main())
