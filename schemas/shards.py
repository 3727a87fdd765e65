"""Names on disk: the folders of a dataset, its shards and the members of a shard."""

import re
from dataclasses import dataclass
from typing import Literal

from schemas.stages import Stage

ImageFormat = Literal["jpg", "png", "webp"]

STAGE_FILE = re.compile(r"\d{5,}(_stats\.json|\.\w+)|(edges|index)\.json")


def is_stage_file(path: str) -> bool:
    """Returns whether a file in a stage's folder is named as those that stages write."""
    return STAGE_FILE.fullmatch(path.rsplit("/", 1)[-1]) is not None


@dataclass(frozen=True, slots=True)
class DatasetLayout:
    """Where everything of a dataset lies below its root, a path or an fsspec URL."""

    root: str

    def __post_init__(self) -> None:
        if len(self.root) > 1 and self.root.endswith("/"):
            object.__setattr__(self, "root", self.root.rstrip("/"))

    def folder(self, stage: Stage) -> str:
        """Returns the folder of what a stage kept."""
        return f"{self.root}/{stage.folder}"

    def rejected_folder(self, stage: Stage) -> str:
        """Returns the folder of what a stage left out."""
        return f"{self.root}/rejected/{stage.value}"

    def pairs(self, shard: int) -> str:
        """Returns the path of a shard's rows as read."""
        return f"{self.folder(Stage.READ)}/{shard:05d}.parquet"

    def fetched(self, shard: int, extension: str) -> str:
        """Returns the path of a fetched shard's `tar`, `parquet` or `_stats.json`."""
        return f"{self.folder(Stage.FETCH)}/{_suffixed(shard, 5, extension)}"

    def scored(self, shard: int) -> str:
        """Returns the path of a shard's scores and embeddings."""
        return f"{self.folder(Stage.SCORE)}/{shard:05d}.parquet"

    def unique(self, shard: int) -> str:
        """Returns the path of the pairs of a shard that are not duplicates."""
        return f"{self.folder(Stage.DEDUPLICATE)}/{shard:05d}.parquet"

    def levelled(self, shard: int) -> str:
        """Returns the path of the levels of a shard's unique pairs."""
        return f"{self.folder(Stage.LEVEL)}/{shard:05d}.parquet"

    def recaptioned(self, shard: int) -> str:
        """Returns the path of the captions, scores and levels that a shard's pairs end with."""
        return f"{self.folder(Stage.RECAPTION)}/{shard:05d}.parquet"

    @property
    def edges(self) -> str:
        """Path of the levels' edges."""
        return f"{self.folder(Stage.LEVEL)}/edges.json"

    def rejected(self, stage: Stage, shard: int) -> str:
        """Returns the path of what a stage left out of a shard."""
        return f"{self.rejected_folder(stage)}/{shard:05d}.parquet"

    def train(self, shard: int, extension: str) -> str:
        """Returns the path of a train shard's `tar` or `parquet`."""
        return f"{self.folder(Stage.PACK)}/{_suffixed(shard, 6, extension)}"

    @property
    def train_index(self) -> str:
        """Path of the list of train shards, in the format of `wids`."""
        return f"{self.folder(Stage.PACK)}/index.json"

    @property
    def manifest(self) -> str:
        """Path of the manifest."""
        return f"{self.root}/manifest.json"

    @property
    def report(self) -> str:
        """Path of the report for people."""
        return f"{self.root}/report.html"

    @property
    def run(self) -> str:
        """Folder of the lock, the configuration and the progress of the job."""
        return f"{self.root}/_run"


def image_member(key: str, image_format: str, number: int = 0) -> str:
    """Returns the name of a sample's image in a shard's tar.

    Args:
        number: 0 for the first image, whose name is that of an only one.
    """
    return f"{key}.{number}.{image_format}" if number else f"{key}.{image_format}"


def shard_number(path: str) -> int:
    """Returns the number of the shard that a file of a dataset is of, by its name."""
    return int(re.split(r"[._]", path.rsplit("/", 1)[-1], maxsplit=1)[0])


def _suffixed(shard: int, digits: int, extension: str) -> str:
    separator = "" if extension.startswith("_") else "."
    return f"{shard:0{digits}d}{separator}{extension}"
