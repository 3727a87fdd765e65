"""The options of a command line: the fields of a dataclass, their docstrings being the help."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import docstring_parser
import tyro
from docstring_parser import Docstring, DocstringStyle


def parse_options(command: type, arguments: Sequence[str], program: str, default: Any) -> Any:
    """Returns a command with the options that the arguments give, or ends and says what is wrong.

    Args:
        command: a dataclass.
        program: what stands before the arguments.
        default: of all that is not given; None for the fields' own.
    """
    with flowing_docstrings():
        return tyro.cli(
            command,
            default=default,
            args=arguments,
            prog=program,
            description=inspect.cleandoc(command.__doc__ or ""),
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )


@contextmanager
def flowing_docstrings() -> Iterator[None]:
    """Lets tyro fill the terminal's lines with a field's help.

    It breaks a line wherever the source does and indents what follows, as docstrings do.
    """
    parse = docstring_parser.parse_from_object

    def parse_flowing(obj: Any, style: DocstringStyle = DocstringStyle.AUTO) -> Docstring:
        found = parse(obj, style)
        for field in found.params:
            field.description = " ".join((field.description or "").split()) or None
        return found

    docstring_parser.parse_from_object = parse_flowing
    try:
        yield
    finally:
        docstring_parser.parse_from_object = parse
