"""From what a form asks for to an SQL condition, which also is what `select` takes."""

from collections.abc import Mapping
from dataclasses import dataclass

HOST = r"lower(regexp_extract(url, '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]+)', 1))"
"""The host of a URL, as SQL."""

STATES = ("kept", "rejected", "all")


@dataclass(frozen=True, slots=True)
class Filters:
    """What the rows shown have in common, as typed; empty texts ask for nothing."""

    state: str = "kept"
    """kept, rejected or all."""
    level_from: str = ""
    level_to: str = ""
    score_from: str = ""
    score_to: str = ""
    min_side: str = ""
    host: str = ""
    text: str = ""
    source: str = ""
    reason: str = ""
    where: str = ""
    """A condition in SQL, beside the others."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Filters":
        """Returns the filters of a request; what is no filter is passed over.

        Raises:
            ValueError: if a number is none.
        """
        values = {name: query.get(name, "").strip() for name in cls.__slots__}
        values["state"] = values["state"] if values["state"] in STATES else "kept"
        return cls(**values)

    def of_samples(self) -> str:
        """Returns the condition on what both kept and rejected rows have; empty for all rows.

        Raises:
            ValueError: if a number is none.
        """
        parts = [
            _bound("alignment_level", ">=", self.level_from, int),
            _bound("alignment_level", "<=", self.level_to, int),
            _bound("clip_score", ">=", self.score_from, float),
            _bound("clip_score", "<=", self.score_to, float),
            _bound("least(width, height)", ">=", self.min_side, int),
            f"{HOST} = {quoted(self.host.lower())}" if self.host else "",
            f"contains(lower(caption), {quoted(self.text.lower())})" if self.text else "",
            f"source = {quoted(self.source)}" if self.source else "",
            f"({self.where})" if self.where else "",
        ]
        return " and ".join(part for part in parts if part)

    def of_rows(self) -> str:
        """Returns the condition on all rows, with the state and the reason."""
        parts = [
            {"kept": "reason is null", "rejected": "reason is not null", "all": ""}[self.state],
            f"reason = {quoted(self.reason)}" if self.reason else "",
            self.of_samples(),
        ]
        return " and ".join(part for part in parts if part)


def _bound(name: str, sign: str, text: str, kind: type[int] | type[float]) -> str:
    if not text:
        return ""
    try:
        return f"{name} {sign} {kind(text)!r}"
    except ValueError as error:
        raise ValueError(f"{name} {sign} {text!r}: give a number") from error


def quoted(text: str) -> str:
    """Returns a text as SQL writes it."""
    return "'" + text.replace("'", "''").replace("\0", "") + "'"
