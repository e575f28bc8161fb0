"""`python -m echoc.bench.membranes`: the measurements of systems.py."""

from echoc.bench.membranes.systems import main

main()
