"""A host's reservations of text and data mining: tdmrep.json, and which paths it is about."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

MAX_RESERVATIONS = 1000
"""Rules of a tdmrep.json that are read."""

JSON_SPACE = re.compile(r"[ \t\n\r]*")

ENCODED = re.compile(r"%(2[4ADEade]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])")
"""Percent-encoded letters, digits, `-._~` (RFC 3986's unreserved characters), `$` and `*`."""


def parse_tdmrep(text: str) -> tuple[tuple[str, bool], ...]:
    """Returns the patterns of a tdmrep.json and whether each is reserved; () if it is none.

    Of a file that is cut or broken, what stands before that holds: the order of the rules decides,
    so that what follows could not change it.

    Source: W3C TDM Reservation Protocol, final community group report, section 6.
    """
    rules = itertools.islice(_rules(text), MAX_RESERVATIONS)
    return tuple(
        (rule["location"], str(rule.get("tdm-reservation", 0)) == "1")
        for rule in rules
        if isinstance(rule, dict) and isinstance(rule.get("location"), str)
    )


def _rules(text: str) -> Iterator[Any]:
    """Yields the elements of a JSON array up to its end, or to where it is broken."""
    decoder, mark = json.JSONDecoder(), "["
    place = _after(text, 0)
    while text[place : place + 1] == mark:
        try:
            rule, place = decoder.raw_decode(text, _after(text, place + 1))
        except (ValueError, RecursionError):
            return
        yield rule
        place, mark = _after(text, place), ","


def _after(text: str, place: int) -> int:
    """Returns the place of the first character from a place on that is not JSON's white space."""
    found = JSON_SPACE.match(text, place)
    return found.end() if found else place


def is_reserved(reservations: tuple[tuple[str, bool], ...], path: str) -> bool:
    """Returns whether the first pattern that matches the path reserves it.

    Unlike in robots.txt, a file's order decides: "the most specific match is the first in
    sequence".

    Source: W3C TDM Reservation Protocol, final community group report, section 6.
    """
    return next((reserved for pattern, reserved in reservations if matches(pattern, path)), False)


def matches(pattern: str, path: str) -> bool:
    """Returns whether a path begins with a pattern of robots.txt's kind (`*`, final `$`).

    Percent-encoded characters are compared as what they stand for, so that `%24` in a pattern
    means a dollar sign; reserved ones otherwise stay encoded.
    """
    path = _plain(path)
    is_whole = pattern.endswith("$")
    pieces = [_plain(piece) for piece in pattern.removesuffix("$").split("*")]
    if not path.startswith(pieces[0]):
        return False
    place = len(pieces[0])
    for piece in pieces[1:]:
        found = path.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return not is_whole or place == len(path) or (len(pieces) > 1 and path.endswith(pieces[-1]))


def _plain(text: str) -> str:
    """Returns a path with what needs no percent encoding decoded, and `$` and `*`."""
    return ENCODED.sub(lambda match: chr(int(match[1], 16)), text)
