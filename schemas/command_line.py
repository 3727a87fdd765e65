"""How both commands speak to people at the terminal."""

from rich.console import Console
from rich.text import Text


def print_error(message: str) -> None:
    """Prints a message in red where errors go."""
    text = Text.assemble(("error: ", "bold red"), (message, "red"))
    # A path or a key that is cut in two cannot be looked for.
    Console(stderr=True).print(text, soft_wrap=True)
