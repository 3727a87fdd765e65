"""How both commands speak to people at the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from schemas.terminal import Console


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


def counted(number: int, noun: str) -> str:
    """Returns how many there are of something whose plural ends in s: `1 pair`, `2,000 pairs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_commands(usage: str, commands: Mapping[str, type], more: str) -> None:
    """Prints how a program is called, its commands, a line each, and what else there is to know.

    Args:
        commands: by name, each with a docstring whose first line says what it does.
    """
    console = Console()
    console.print(f"usage: {usage}\n", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, command in commands.items():
        table.add_row(f"  {name}", (command.__doc__ or "").splitlines()[0])
    console.print(table)
    console.print(f"\n{more}", highlight=False)


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """Returns the value of a flag that decides the defaults of all others; None if not given."""
    for index, word in enumerate(arguments):
        if word == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return None
