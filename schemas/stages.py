"""The stages of a curation, in their order."""

from enum import StrEnum


class Stage(StrEnum):
    """The stages of the curation job, in their order, each with all that it is known by.

    A stage takes what the one before it left in its folder, and nothing else.
    """

    _value_: str
    folder: str
    """Folder of the dataset that it writes to."""
    marker: str
    """End of the name of the file that it writes last for a shard: with it the shard is done."""
    section: str
    """Part of the configuration that is its own."""

    READ = ("read", "pairs", ".parquet", "read")
    FETCH = ("fetch", "fetched", "_stats.json", "fetch")
    SCORE = ("score", "scored", ".parquet", "score")
    DEDUPLICATE = ("deduplicate", "unique", ".parquet", "deduplicate")
    LEVEL = ("level", "levelled", ".parquet", "levels")
    RECAPTION = ("recaption", "recaptioned", ".parquet", "recaption")
    PACK = ("pack", "train", ".parquet", "pack")

    def __new__(cls, name: str, folder: str = "", marker: str = "", section: str = "") -> "Stage":
        """Returns the member whose value is its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.folder, member.marker, member.section = folder, marker, section
        return member

    @property
    def number(self) -> int:
        """Its place in the order, from 0."""
        return list(Stage).index(self)

    @property
    def onward(self) -> tuple["Stage", ...]:
        """The stage and all stages after it, in their order."""
        return tuple(Stage)[self.number :]
