"""`python -m fedvox_compliance` is `fedvox-compliance`."""

from fedvox_compliance.cli import main

main()
