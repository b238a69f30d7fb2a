"""`python -m harness`: the command line where the script is not on PATH."""

from harness.cli import main

main()
