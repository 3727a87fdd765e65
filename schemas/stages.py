"""The stages of a curation, in their order."""

from enum import StrEnum


class Stage(StrEnum):
    """The stages of the curation job, in their order."""

    READ = "read"
    FETCH = "fetch"
    SCORE = "score"
    DEDUPLICATE = "deduplicate"
    LEVEL = "level"
    PACK = "pack"
