"""`python -m fedvox_federation` is `fedvox-federation`."""

from fedvox_federation.cli import main

if __name__ == "__main__":
    main()
