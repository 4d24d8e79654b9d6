"""`python -m fedvox`."""

from fedvox.cli import main

if __name__ == "__main__":
    main()
