"""The command line. Modules import typer and the standard library at the top; whatever is slow is imported by the command that needs it."""
