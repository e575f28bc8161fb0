"""`python -m echoc` is the command line."""

from echoc.cli import main

main()
