"""`python -m sparseinfer` is the command line."""

import sys

from sparseinfer.cli import main

sys.exit(main())
