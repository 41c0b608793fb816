"""`python -m dayfly` is `dayfly`."""

import sys

from dayfly.cli.main import main

sys.exit(main())
