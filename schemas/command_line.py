"""How both commands speak to people at the terminal."""

from rich.console import Console
from rich.text import Text


def print_error(message: str) -> None:
    """Prints a message in red where errors go."""
    text = Text.assemble(("error: ", "bold red"), (message, "red"))
    # A path or a key that is cut in two cannot be looked for.
    Console(stderr=True).print(text, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """Returns a length of time for people: `47 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
