"""`python -m mgpo`."""

from mgpo.cli import main

main()
