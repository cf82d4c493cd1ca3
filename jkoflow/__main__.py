"""Runs the command line for ``python -m jkoflow``."""

from jkoflow.cli import main

if __name__ == "__main__":
    main()
