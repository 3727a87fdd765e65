"""How options are read and explained."""

from dataclasses import dataclass

import docstring_parser
import pytest

from schemas.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Walk to a place.

    How long that takes depends on the place, on the weather, and on who goes
    there.
    """

    speed: float = 5.0
    """Of a person who carries nothing at all, in an hour, over a good road with few hills
    (miles are not taken), in kilometres."""


def test_help_fills_the_lines_whatever_the_lines_of_the_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_options(Walk, ["--help"], "walk", None)
    shown = capsys.readouterr().out
    assert "few hills (miles are not taken), in kilometres. (default: 5.0)" in shown
    assert "\nHow long that takes" in shown


def test_options_are_read_and_what_tyro_reads_docstrings_by_is_as_before():
    before = docstring_parser.parse_from_object
    assert parse_options(Walk, ["--speed", "3"], "walk", None) == Walk(speed=3.0)
    assert docstring_parser.parse_from_object is before
