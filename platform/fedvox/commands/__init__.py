"""One module a command of `fedvox`; each is a plain function that typer turns into a command line."""
