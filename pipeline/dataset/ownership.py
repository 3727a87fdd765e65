"""Which files of a dataset's folder are ours: those that its own record lists.

`_run/files.json` is the record. It is written twice in a job, never once for each file: before any
work it lists what stands there and is ours, and names the folders that the job may write to as
open; when all is done it lists what came to be, and nothing is open. What a killed job left in an
open folder is known by the traces that its workers wrote before they began (`_run/progress`,
`_run/finished.parquet`, the number of shards in `_run/read`), or else by what the file says of
itself. Whatever else bears the name of a shard is somebody's own: no job begins where it stands.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.finished import finished_shards
from pipeline.dataset.progress import STEP_FILE
from pipeline.dataset.worktimes import TIMES_FILE
from schemas.columns import RECORD_FIELD, VERSION_FIELD
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    exists,
    file_sizes,
    list_files,
    open_read,
    read_bytes,
    walk_files,
)

RECORD_NAMES = {
    Stage.READ: "Pair",
    Stage.FETCH: "FetchedSample",
    Stage.SCORE: "ScoredSample",
    Stage.DEDUPLICATE: "UniqueSample",
    Stage.LEVEL: "LevelledSample",
    Stage.RECAPTION: "RecaptionedSample",
    Stage.PACK: "TrainSample",
}
"""Stage to the record type whose tables it writes to its folder."""

READ_ENDINGS = (".parquet", ".tar", ".json")
"""Of names that stages or reports take for their own: another's file must not bear them there."""

ROOT_FILES = ("manifest.json", "report.html", "croissant.json")
"""What a report writes at the top of a dataset."""

NUMBERED = re.compile(r"(\d{5,})(\D.*)")
RANGE = re.compile(r"(\d+)-(\d+)(\D.*)")
TRACE = re.compile(r"([a-z]+)-(\d{5,})\.json")
OUR_MEMBER = re.compile(rb"[0-9a-f]{32}\.[a-z0-9.]+\0")

WORK_FILES = {
    "read": re.compile(
        r"[0-9a-f]{32}/(shards\.json|runs/\d+(-\d+\.arrow|\.json)|"
        r"sorted/\d+(_pairs\.arrow|_rejected\.arrow|\.json))"
    ),
    "retry": re.compile(r"\d{5,}/(new\.tar|new\.parquet|rejected\.parquet|(stats|ready)\.json)"),
    "deduplicate": re.compile(
        r"[0-9a-f]{32}/(cells\.npz|joined|[a-z_]+/(done|([a-z]+-)?\d{5,}\.(npy|arrow)))"
    ),
    "level": re.compile(r"[0-9a-f]{32}/((spilled|parted|values)/\d{5,}|ranks/\d{2,}-\d{5,})\.bin"),
    "progress": re.compile(rf"[a-z]+-\d{{5,}}\.json|{STEP_FILE.pattern}"),
    "times": TIMES_FILE,
}
"""Folder of `_run` to the names of the files in it, which jobs remove with their folders."""

SHOWN = 3
"""Most files that a message names."""


def stage_folders() -> dict[str, Stage]:
    """Returns each folder that stages write to, below the root, and whose it is."""
    folders = {stage.folder: stage for stage in Stage}
    return folders | {f"rejected/{stage.value}": stage for stage in Stage}


@dataclass(slots=True)
class FolderRecord:
    """What is ours in a dataset's folder."""

    layout: DatasetLayout
    files: dict[str, set[str]] = field(default_factory=dict)
    """Folder below the root ("" for the root itself) to the names of our files in it."""
    sizes: dict[str, str] = field(default_factory=dict)
    """Folder to a hash of the names and sizes of our files in it, when the last job was done."""
    open: set[str] = field(default_factory=set)
    """Folders in which a job may have left more than is listed."""
    is_handed_over: bool = False
    """Whether others go on with the job's work after it, so that its folders stay open."""

    @property
    def path(self) -> str:
        """Where the record is kept."""
        return record_path(self.layout)

    def lists(self, path: str) -> bool:
        """Returns whether a file, named by its path below the layout's root, is ours."""
        folder, _, name = path.removeprefix(f"{self.layout.root}/").rpartition("/")
        return name in self.files.get(folder, ())

    def forget(self, path: str) -> None:
        """Takes a file from the list that was removed."""
        folder, _, name = path.removeprefix(f"{self.layout.root}/").rpartition("/")
        self.files.get(folder, set()).discard(name)

    def write(self) -> None:
        """Writes the record, whole or not at all."""
        values = {
            "open": sorted(self.open),
            "files": {name: compact(files) for name, files in sorted(self.files.items()) if files},
            "sizes": self.sizes,
        }
        commit_text(self.path, json.dumps(values, indent=1) + "\n")

    def begin(self, stages: Iterable[Stage], *, has_report: bool) -> None:
        """Notes, before any work, which folders this job may write to.

        Raises:
            ConfigError: if a report is to be written where somebody's own file stands.
        """
        wanted = set(stages)
        self.open |= {name for name, stage in stage_folders().items() if stage in wanted}
        if has_report:
            self.open.add("")
            refuse(self.layout, [f"{self.layout.root}/{name}" for name in self._foreign_reports()])
        self.write()

    def _foreign_reports(self) -> list[str]:
        standing = {path.rsplit("/", 1)[-1] for path in list_files(self.layout.root)}
        names = standing.intersection(ROOT_FILES) - self.files.get("", set())
        return sorted(names)

    def take_stock(self) -> list[str]:
        """Lists our files that stand; returns the paths of others that bear such names."""
        traces = read_traces(self.layout)
        foreign: list[str] = []
        for folder, stage in {**stage_folders(), "": None}.items():
            place = f"{self.layout.root}/{folder}".rstrip("/")
            sizes = {path[len(place) + 1 :]: size for path, size in file_sizes(place).items()}
            known = self._unchanged(folder, sizes)
            ours = {
                name
                for name in sizes
                if name in known or self._is_left(folder, f"{place}/{name}", stage, traces)
            }
            if stage is not None:
                foreign += [f"{place}/{name}" for name in sorted(sizes) if _is_taken(name, ours)]
            self.files[folder] = ours
            self.sizes[folder] = _hash_sizes(ours, sizes)
        return foreign

    def _unchanged(self, folder: str, sizes: Mapping[str, int]) -> set[str]:
        """Returns the listed files of a folder; none if one of them is not what it was."""
        known = self.files.get(folder, set())
        is_as_left = self.sizes.get(folder) == _hash_sizes(known & sizes.keys(), sizes)
        return known if folder in self.open or is_as_left else set()

    def _is_left(self, folder: str, path: str, stage: Stage | None, traces: "Traces") -> bool:
        """Returns whether a file that is not listed as it stands is ours all the same."""
        if stage is None:
            says = REPORTS.get(path.rsplit("/", 1)[-1])
            return says is not None and says(path)
        is_listed = path.rsplit("/", 1)[-1] in self.files.get(folder, ())
        if folder not in self.open and not is_listed:
            return False
        return (folder in self.open and is_traced(path, stage, traces)) or says_ours(path, stage)


def _is_taken(name: str, ours: set[str]) -> bool:
    """Returns whether a file that is not ours bears a name that stages take for their own."""
    is_like_ours = name.endswith(READ_ENDINGS) or NUMBERED.fullmatch(name)
    return name not in ours and bool(is_like_ours)


def _hash_sizes(names: Iterable[str], sizes: Mapping[str, int]) -> str:
    lines = "".join(f"{name} {sizes[name]}\n" for name in sorted(names))
    return hashlib.blake2b(lines.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def record_path(layout: DatasetLayout) -> str:
    """Returns where the record of a dataset's files is kept."""
    return f"{layout.run}/files.json"


def read_record(layout: DatasetLayout) -> FolderRecord | None:
    """Returns the record of a dataset's files; None if there is none.

    Raises:
        ConfigError: if what stands there is no such record.
    """
    path = record_path(layout)
    if not exists(path):
        return None
    try:
        values = json.loads(read_bytes(path))
        files = {str(name): expand(found) for name, found in values["files"].items()}
        return FolderRecord(layout, files, dict(values["sizes"]), set(values["open"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no record of a dataset's files ({error!r}): give --out another folder"
        ) from error


def listed_files(layout: DatasetLayout, folder: str) -> list[str]:
    """Returns the paths of our files in a folder below the root, as the job found them, sorted."""
    record = read_record(layout)
    names = set() if record is None else record.files.get(folder, set())
    return [f"{layout.root}/{folder}/{name}" for name in sorted(names)]


@contextmanager
def recorded_folder(layout: DatasetLayout, say: Callable[[str], None]) -> Iterator[FolderRecord]:
    """Keeps the record of a folder while a job runs in the block; the job holds the folder.

    Args:
        say: told of a folder that was made before there were records.

    Raises:
        ConfigError: before any work, if a file in it is somebody's own.
    """
    record = read_record(layout)
    is_new = record is None
    if record is None:
        record = FolderRecord(layout, open={*stage_folders(), ""})
    refuse(layout, [*record.take_stock(), *_foreign_work(layout)])
    count = sum(map(len, record.files.values()))
    if is_new and count:
        say(f"{layout.root} was made before its files were recorded: {count:,} are recorded now.")
    record.write()
    yield record
    if record.is_handed_over:
        return
    record.take_stock()
    record.open = set()
    record.write()


def refuse(layout: DatasetLayout, foreign: list[str]) -> None:
    """Raises `ConfigError` if there are files that no job of ours wrote."""
    if not foreign:
        return
    names = ", ".join(path.removeprefix(f"{layout.root}/") for path in foreign[:SHOWN])
    more = f" and {len(foreign) - SHOWN:,} more" if len(foreign) > SHOWN else ""
    raise ConfigError(
        f"{layout.root} holds files that no job of this dataset wrote, where jobs write and remove "
        f"their own: {names}{more}. Nothing was touched: move them elsewhere, or give another --out"
    )


def _foreign_work(layout: DatasetLayout) -> list[str]:
    """Returns what stands in the folders of work in between and bears none of its names."""
    foreign = []
    for folder, names in WORK_FILES.items():
        root = f"{layout.run}/{folder}"
        found = walk_files(root)
        foreign += [path for path in found if not names.fullmatch(path[len(root) + 1 :])]
    return foreign


Traces = Mapping[Stage, set[int]]
"""Of each stage, the shards that a job has begun to write."""


def read_traces(layout: DatasetLayout) -> Traces:
    """Returns which shards jobs have begun, by what they wrote before they began."""
    traces: dict[Stage, set[int]] = {stage: set() for stage in Stage}
    for path in list_files(f"{layout.run}/progress", ".json"):
        found = TRACE.fullmatch(path.rsplit("/", 1)[-1])
        if found and found[1] != Stage.READ.value and found[1] in list(Stage):
            traces[Stage(found[1])].add(int(found[2]))
    for stage, shard in finished_shards(layout):
        traces[Stage(stage)].add(shard)
    markers = [path for path in (f"{layout.run}/read.json",) if exists(path)]
    for folder in list_files(f"{layout.run}/read"):
        markers += [path for path in list_files(folder) if path.endswith("/shards.json")]
    for marker in markers:
        shards = _json_of(marker).get("shards", 0)
        traces[Stage.READ].update(range(max(shards, 1)))
    return traces


def is_traced(path: str, stage: Stage, traces: Traces) -> bool:
    """Returns whether a job that was stopped had begun the shard that a file is of."""
    found = NUMBERED.fullmatch(path.rsplit("/", 1)[-1])
    return bool(found and int(found[1]) in traces[stage] and found[2] in ENDINGS[stage])


ENDINGS = {
    **dict.fromkeys(Stage, (".parquet",)),
    Stage.FETCH: (".parquet", ".tar", "_stats.json"),
    Stage.PACK: (".parquet", ".tar"),
}
"""Of the numbered files of a stage."""


def says_ours(path: str, stage: Stage) -> bool:
    """Returns whether a file's content says that it is a stage's."""
    try:
        return _says_ours(path, path.rsplit("/", 1)[-1], stage)
    except (OSError, ValueError, pa.ArrowException):
        return False


def _says_ours(path: str, name: str, stage: Stage) -> bool:
    if name.endswith(".parquet"):
        with open_read(path) as file:
            metadata = pq.read_schema(file).metadata or {}
        wanted = "Rejection" if "/rejected/" in path else RECORD_NAMES[stage]
        return VERSION_FIELD in metadata and metadata.get(RECORD_FIELD) == wanted.encode()
    if name.endswith(".tar"):
        return stage in (Stage.FETCH, Stage.PACK) and _is_our_tar(path)
    if (name, stage) == ("index.json", Stage.PACK):
        return _json_of(path).keys() == {"wids_version", "shardlist"}
    if (name, stage) == ("edges.json", Stage.LEVEL) or name.endswith("_stats.json"):
        return len(str(_json_of(path).get("fingerprint"))) == 32
    return False


def _is_our_tar(path: str) -> bool:
    """Returns whether a tar begins as ours do: a key, no owner, no time, for reading alone."""
    with open_read(path) as file:
        header = file.read(512)
    return not header.strip(b"\0") or bool(
        OUR_MEMBER.match(header)
        and header[100:108] == b"0000444\0"
        and header[136:147] == b"0" * 11
        and header[257:262] == b"ustar"
    )


def _json_of(path: str) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one if it holds none."""
    try:
        values = json.loads(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_our_page(path: str) -> bool:
    with open_read(path) as file:
        return b": curation report</title>" in file.read(4096)


REPORTS: dict[str, Callable[[str], bool]] = {
    "manifest.json": lambda path: {"aligngpt_version", "shards"} <= _json_of(path).keys(),
    "croissant.json": lambda path: _json_of(path).get("name") == "aligngpt-train",
    "report.html": _is_our_page,
}
"""File of a report to what tells ours from another's."""


def compact(names: Iterable[str]) -> list[str]:
    """Returns names with runs of numbers as ranges: `00000-00041.parquet`."""
    found = [(NUMBERED.fullmatch(name), name) for name in names]
    entries = sorted(name for match, name in found if match is None)
    numbered = sorted((match[2], len(match[1]), int(match[1])) for match, _ in found if match)
    for (ending, _, _), run in groupby(
        enumerate(numbered), key=lambda item: (item[1][0], item[1][1], item[1][2] - item[0])
    ):
        members = [(width, number) for _, (_, width, number) in run]
        (width, first), (_, last) = members[0], members[-1]
        entries.append(f"{first:0{width}d}-{last:0{width}d}{ending}")
    return entries


def expand(entries: Iterable[str]) -> set[str]:
    """Returns the names that `compact` has made ranges of."""
    names: set[str] = set()
    for entry in entries:
        found = RANGE.fullmatch(entry)
        if found is None:
            names.add(entry)
            continue
        numbers = range(int(found[1]), int(found[2]) + 1)
        names.update(f"{number:0{len(found[1])}d}{found[3]}" for number in numbers)
    return names
