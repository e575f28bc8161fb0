"""`python -m echoc.bench`."""

import sys

from echoc.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
