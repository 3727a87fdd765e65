"""What the frozen vision tower makes of each picture, computed once and kept on disk.

A store holds, for each picture, what the projector reads (`Projector.reduce`), in the precision of
the run. It is a folder:

    store.json                what decides the numbers: tower, preprocessing, precision
    features-<hash>.safetensors   `features` (n, R, W), and the pictures' hashes as metadata

Files are written aside and renamed, so each is whole; what is missing is computed when a run
starts. A store of another tower, preprocessing or precision is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.errors import ConfigError, DatasetError, StorageError

STORE_VERSION = 1
"""Raised when features are computed or laid out differently from before."""
DESCRIPTION = "store.json"
FILE_BYTES = 128 * 2**20
"""About so much is in one file."""
PICTURES_AT_ONCE = 32
"""That the tower sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a dataset: which it is, and where it lies."""

    digest: str
    """Hash of its pixels as they are stored, or its sample's key and number where there is none."""
    sample: int
    number: int
    """Which of the sample's pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureShape:
    """What a store's rows are."""

    vectors: int
    channels: int
    dtype: torch.dtype

    @property
    def bytes_of_picture(self) -> int:
        """Room that one picture takes."""
        return self.vectors * self.channels * self.dtype.itemsize


class FeatureStore:
    """The features of pictures in a folder; travels to worker processes.

    Raises:
        ConfigError: if the folder holds the features of another tower or preprocessing.
        DatasetError: if a file of it cannot be read.
    """

    def __init__(self, folder: Path, description: dict[str, Any], shape: FeatureShape) -> None:
        self.folder, self.shape = folder, shape
        self._description = {"version": STORE_VERSION, **description}
        self._places: dict[str, tuple[str, int]] = {}
        self._open: dict[str, Any] = {}
        self.written: list[str] = []
        """Names of the files that this process wrote."""
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what travels: files are opened anew in each process."""
        return {**self.__dict__, "_open": {}}

    def __contains__(self, digest: object) -> bool:
        """Returns whether a picture is in the store."""
        return digest in self._places

    def __getitem__(self, digest: str) -> Tensor:
        """Returns what the projector reads of a picture, (R, W)."""
        name, row = self._places[digest]
        if name not in self._open:
            self._open[name] = _opened(self.folder / name)
        rows: Tensor = self._open[name].get_slice("features")[row : row + 1]
        return rows[0]

    def files(self) -> list[str]:
        """Returns the names of its files, as this process sees them now."""
        return sorted(path.name for path in self.folder.glob("features-*.safetensors"))

    def read_index(self, names: Sequence[str]) -> None:
        """Finds all pictures of these files; call it when others have written."""
        self._places = {}
        for path in (self.folder / name for name in sorted(set(names))):
            digests = json.loads(_opened(path).metadata()["digests"])
            self._places |= {digest: (path.name, row) for row, digest in enumerate(digests)}

    def write(self, digests: Sequence[str], features: Tensor) -> None:
        """Adds the features of pictures, (n, R, W), as one file.

        Raises:
            StorageError: if there is no room, or the folder cannot be written.
        """
        name = hashlib.blake2b("\n".join(digests).encode(), digest_size=8).hexdigest()
        path = self.folder / f"features-{name}.safetensors"
        aside = self.folder / f".{path.name}.tmp"
        try:
            metadata = {"digests": json.dumps(list(digests))}
            save_file({"features": features.contiguous()}, aside, metadata=metadata)
            aside.replace(path)
            self.written.append(path.name)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise StorageError(
                f"{path} could not be written ({error}): make room, or give another folder by "
                "--data.vision-features-folder; what is computed stays"
            ) from error

    def begin(self, pictures: int) -> str:
        """Notes in the folder whose features it holds; returns the room so many take, in words.

        Raises:
            ConfigError: if there is not so much room, or the folder cannot be written.
        """
        words = self._check_room(pictures)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = self.folder / f".{DESCRIPTION}.tmp"
            aside.write_text(json.dumps(self._description, indent=2, sort_keys=True) + "\n")
            aside.replace(self.folder / DESCRIPTION)
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be written ({error.strerror}): give another folder by "
                "--data.vision-features-folder"
            ) from error
        return words

    def _check_room(self, pictures: int) -> str:
        """Returns what room the pictures that are missing will take, in words.

        Raises:
            ConfigError: if there is not so much room.
        """
        needed = pictures * self.shape.bytes_of_picture
        parent = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(parent).free
        words = f"{_size(needed)} in {self.folder}, where {_size(free)} are free"
        if needed > free:
            raise ConfigError(
                f"the features of {pictures:,} pictures need {words}: make room, give another "
                "folder by --data.vision-features-folder, or --data.vision-features compute"
            )
        return words

    def _check(self) -> None:
        path = self.folder / DESCRIPTION
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.glob("features-*.safetensors")):
                raise ConfigError(f"{self.folder} has features, but no {DESCRIPTION} says of what")
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON that can be read: {error}") from error
        differing = [
            f"{name} was {found.get(name)!r} and is now {value!r}"
            for name, value in self._description.items()
            if found.get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"the vision features in {self.folder} are stale: {'; '.join(differing)}. Give "
                "another folder by --data.vision-features-folder, or remove this one"
            )
        self.read_index(self.files())


def missing_pictures(store: FeatureStore, pictures: Sequence[Picture]) -> list[Picture]:
    """Returns the pictures that the store lacks, each once, in an order that never changes."""
    missing = {p.digest: p for p in pictures if p.digest not in store}
    return [missing[digest] for digest in sorted(missing)]


def batches_of(missing: Sequence[Picture], shape: FeatureShape) -> Iterator[list[Picture]]:
    """Yields what goes into one file each."""
    size = max(1, FILE_BYTES // shape.bytes_of_picture)
    for start in range(0, len(missing), size):
        yield list(missing[start : start + size])


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}): remove it, and its features are computed again"
        ) from error


def _size(count: int) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}"
        count /= 1000  # type: ignore[assignment]
    raise AssertionError
