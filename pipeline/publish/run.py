"""Publish: writes a folder that the Hugging Face Hub and other readers open as it is."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.dataset.commits import stage_fingerprint
from pipeline.dataset.guard import LEFTOVER
from pipeline.dataset.manifests import manifest_sha256, read_manifest
from pipeline.dataset.train_samples import TarReaders
from pipeline.job.lock import hold_folder
from pipeline.publish.card import ENDINGS, LEVELS_PICTURE, About, card, levels_picture
from pipeline.publish.companions import checksums, croissant, energon_files, wids_index
from pipeline.publish.features import parquet_features, refuse_own_pictures, tar_features
from pipeline.publish.samples import TRAIN, VALIDATION, Counts, Publishable, sayable
from pipeline.publish.shards import Published, write_parquet, write_tar
from schemas.command_line import counted
from schemas.errors import ConfigError, DatasetError
from schemas.progress import RunProgress
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_file,
    commit_text,
    exists,
    file_sizes,
    is_local,
    lies_within,
    local_path,
    read_json,
    remove_folder,
    walk_files,
)
from schemas.terminal import Console

RECORD = ".aligngpt/publish.json"
"""What is ours in a publication's folder, and what it was made from."""

OWN_LAYOUT = 2
"""Raised with every change of what a publication is like."""


class Publication:
    """A publication's folder and the record of what stands in it."""

    def __init__(self, out: str, fingerprint: str, settings: dict[str, Any]) -> None:
        self.out = out.rstrip("/") or "/"
        self._values: dict[str, Any] = {
            "fingerprint": fingerprint,
            "settings": settings,
            "files": {},
        }

    @property
    def record(self) -> str:
        """Where the record is."""
        return f"{self.out}/{RECORD}"

    def begin(self) -> None:
        """Takes the folder, or goes on where an earlier run was stopped.

        Raises:
            ConfigError: if others' files stand there, or another publication.
        """
        if not exists(self.record):
            foreign = walk_files(self.out) if exists(self.out) else []
            if foreign:
                named = ", ".join(path.removeprefix(f"{self.out}/") for path in foreign[:3])
                raise ConfigError(
                    f"{self.out} holds what no publication wrote ({named}): give --out a new or "
                    "empty folder"
                )
            self._write()
            return
        standing = read_json(self.record)
        if standing["fingerprint"] != self._values["fingerprint"]:
            differing = [
                f"{name} was {standing['settings'].get(name)!r} there, this run has {value!r}"
                for name, value in self._values["settings"].items()
                if standing["settings"].get(name) != value
            ]
            raise ConfigError(
                f"{self.out} is another publication "
                f"({'; '.join(differing) or 'the dataset has changed since'}): give --out a new "
                "folder, or remove that one"
            )
        self._values = standing
        self._remove_leftovers()

    def standing(self, name: str) -> Published | None:
        """Returns a file that is written already; None if it is not, or has another length."""
        known = self._values["files"].get(name)
        if known is None:
            return None
        sizes = file_sizes(f"{self.out}/{name}".rsplit("/", 1)[0])
        is_there = sizes.get(f"{self.out}/{name}") == known["num_bytes"]
        return Published(**known) if is_there else None

    def note(self, files: Sequence[Published]) -> None:
        """Records files as written."""
        self._values["files"] |= {file.name: file.as_dict() for file in files}
        self._write()

    def write(self, name: str, content: bytes) -> Published:
        """Writes a small file whole and returns what it is."""
        with commit_file(f"{self.out}/{name}") as file:
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        return Published(name=name, samples=0, num_bytes=len(content), sha256=digest)

    def _write(self) -> None:
        commit_text(self.record, json.dumps(self._values, indent=1) + "\n")

    def _remove_leftovers(self) -> None:
        """Removes half-written files of a run that was killed."""
        if not is_local(self.out):
            return
        for folder in (TRAIN, VALIDATION, ".aligngpt"):
            for path in Path(local_path(self.out), folder).glob(".*.tmp"):
                found = LEFTOVER.fullmatch(path.name)
                if found and OWN_NAME.fullmatch(found[1]):
                    path.unlink(missing_ok=True)


OWN_NAME = re.compile(
    r"(train|validation)-\d{5,}-of-\d{5,}\.(parquet|tar|tar\.idx)|(index|publish)\.json"
)


def publish_dataset(
    root: str,
    out: str,
    about: About,
    validation_ratio: float,
    samples_per_shard: int | None,
    console: Console,
) -> None:
    """Writes a publication of a finished dataset, or what of it is not there yet.

    Raises:
        ConfigError: if the folder is not free for it, or a setting is not allowed.
        DatasetError: if the dataset is not finished, or damaged.
    """
    if not 0 <= validation_ratio < 1:
        raise ConfigError(
            f"--validation-ratio must be from 0 to less than 1, got {validation_ratio}"
        )
    if lies_within(out, root) or lies_within(root, out):
        raise ConfigError(f"--out {out} and the dataset {root} lie in each other")
    layout = DatasetLayout(root)
    dataset = Publishable(layout, read_manifest(layout), validation_ratio)
    if not dataset.manifest.kept:
        raise DatasetError(f"{root} holds no samples to publish")
    if about.form == "parquet":
        refuse_own_pictures(dataset.kept_fields())
    size = samples_per_shard or dataset.manifest.samples_per_shard
    settings = {
        "form": about.form,
        "validation_ratio": validation_ratio,
        "samples_per_shard": size,
        "layout": OWN_LAYOUT,
    }
    fingerprint = stage_fingerprint(Stage.PACK, settings, [manifest_sha256(layout)])
    publication = Publication(out, fingerprint, settings)
    own = DatasetLayout(f"{publication.out}/.aligngpt")
    with _held(own):
        publication.begin()
        counts = dataset.count()
        shards = _write_shards(publication, dataset, about, counts, size)
        _write_companions(publication, about, dataset, counts, shards)
    what = f"{counted(sum(counts.samples.values()), 'sample')} in {counted(len(shards), 'shard')}"
    console.print(f"{what}, with card, Croissant and checksums: {publication.out}")


@contextmanager
def _held(own: DatasetLayout) -> Iterator[None]:
    """Holds a publication's folder within a block; leaves no trace of that, also if it fails."""
    is_held = False
    try:
        with hold_folder(own):
            is_held = True
            yield
    finally:
        if is_held:
            remove_folder(own.run)
            if is_local(own.root):
                with suppress(OSError):  # where something was published, its record stays
                    Path(local_path(own.root)).rmdir()


def _write_shards(
    publication: Publication, dataset: Publishable, about: About, counts: Counts, size: int
) -> list[Published]:
    """Returns the shards of all splits, written where they did not stand."""
    total = sum(counts.samples.values())
    kept = dataset.kept_fields()
    written: list[Published] = []
    with (
        closing(TarReaders()) as readers,
        RunProgress("Publishing", total, 0, is_active=True, unit="sample") as progress,
    ):
        for split in (TRAIN, VALIDATION):
            names = _shard_names(split, counts.samples[split], size, ENDINGS[about.form])
            there = [publication.standing(name) for name in names]
            skip = [file is not None for file in there]
            samples = dataset.samples(split, skip, size, readers)
            folders = dataset.image_folders
            for name, file in zip(names, there, strict=True):
                part = ((sayable(row, folders), images) for row, images in islice(samples, size))
                if file is not None:
                    for _ in part:
                        progress.advance()
                    written.append(file)
                    continue
                path = f"{publication.out}/{name}"
                files = _writer(about)(path, name, part, progress.advance, kept)
                publication.note(files)
                written.append(files[0])
    return written


def _writer(about: About) -> Callable[..., list[Published]]:
    return write_tar if about.form == "webdataset" else write_parquet


def _shard_names(split: str, samples: int, size: int, ending: str) -> list[str]:
    """Returns the names of a split's shards, as the Hub has them."""
    count = -(-samples // size)
    return [f"{split}/{split}-{n:05d}-of-{count:05d}.{ending}" for n in range(count)]


def _write_companions(
    publication: Publication,
    about: About,
    dataset: Publishable,
    counts: Counts,
    shards: list[Published],
) -> None:
    """Writes what lies beside the shards, the card last: with it a publication is whole."""
    texts: dict[str, str] = {}
    files: list[Published] = list(shards)
    image_fields = sorted(counts.image_fields, key=lambda name: (name.count("."), len(name), name))
    kept = dataset.kept_fields()
    features = parquet_features(kept)
    if about.form == "webdataset":
        features = tar_features(image_fields, kept)
        texts |= energon_files(shards)
        for split in (TRAIN, VALIDATION):
            of_split = [shard for shard in shards if shard.name.startswith(f"{split}/")]
            if of_split:
                texts[f"{split}/index.json"] = wids_index(of_split)
        indexes = [publication.standing(f"{shard.name}.idx") for shard in shards]
        files += [index for index in indexes if index is not None]
    formats = sorted({name.rsplit(".", 1)[-1] for name in image_fields})
    texts["croissant.json"] = croissant(about, shards, formats, kept)
    check_croissant(json.loads(texts["croissant.json"]))
    files += [publication.write(name, text.encode()) for name, text in texts.items()]
    if counts.levels:
        files.append(publication.write(LEVELS_PICTURE, levels_picture(counts)))
    text = card(about, dataset.manifest, counts, shards, features)
    files.append(publication.write("README.md", text.encode()))
    publication.write("checksums.sha256", checksums(files).encode())
    publication.note(files)


def check_croissant(values: dict[str, Any]) -> None:
    """Holds Croissant metadata against the specification, by `mlcroissant`.

    Raises:
        DatasetError: naming what it finds wrong.
    """
    import mlcroissant

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends citations and dates, which only people have
    try:
        mlcroissant.Dataset(jsonld=values)
    except mlcroissant.ValidationError as error:
        raise DatasetError(f"the Croissant metadata is not valid: {error}") from error
    finally:
        logger.setLevel(level)
