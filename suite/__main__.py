"""`python -m zipmix` is the command line."""

from zipmix.cli import main

# Processes that a study starts import this file as well.
if __name__ == "__main__":
    main()
