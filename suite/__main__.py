"""`python -m zipmix` is the command line."""

from zipmix.cli import main

main()
