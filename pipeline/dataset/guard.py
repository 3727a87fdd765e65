"""The guard of a dataset's folder: two configurations are never mixed in it."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import CurationConfig
from pipeline.dataset.ownership import (
    NUMBERED,
    ROOT_FILES,
    FolderRecord,
    record_path,
    stage_folders,
)
from pipeline.dataset.progress import forget_stages
from pipeline.dataset.worktimes import REPORT, forget_times
from schemas.columns import SCHEMA_VERSION
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    committed_fingerprint,
    exists,
    is_local,
    list_files,
    local_path,
    read_bytes,
    read_json,
    remove,
    stage_files,
)
from schemas.versions import program_version

SYSTEM_FOLDERS = ("lost+found",)
"""What a new disk holds."""

LOCK_FILES = ("lock", "workers.lock", "lock.json")
"""What a job leaves that ended before it could record that the folder is its own."""

LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")
"""Names of files that were being written. Source: `schemas.storage.commit_file`."""


def config_path(layout: DatasetLayout) -> str:
    """Returns where the configuration that made a dataset is recorded."""
    return f"{layout.run}/config.json"


def stored_config(layout: DatasetLayout) -> dict[str, Any] | None:
    """Returns the configuration that the folder was made with, as JSON; None if it is new.

    Raises:
        DatasetError: if it is of another schema version.
    """
    path = config_path(layout)
    if not exists(path):
        return None
    if not _is_config(path):
        raise DatasetError(f"{path} is no configuration of a dataset: use another --out")
    values = read_json(path)
    if values["schema_version"] != SCHEMA_VERSION:
        raise DatasetError(
            f"{layout.root} was made under schema version {values['schema_version']}, this "
            f"program writes version {SCHEMA_VERSION}: use another --out"
        )
    config: dict[str, Any] = values["config"]
    return config


def guard_folder(
    layout: DatasetLayout,
    config: CurationConfig,
    stages: Sequence[Stage],
    not_deciding: Mapping[Stage, Collection[str]],
) -> None:
    """Records the configuration, if it fits what lies in the folder.

    Args:
        stages: those that are to run.
        not_deciding: settings of a stage that change how it works but not what it makes; they may
            differ.

    Raises:
        ConfigError: if one of the stages has output that was made with other settings.
    """
    stored, wanted = refuse_other_settings(layout, config, stages, not_deciding)
    sections = {stage.section for stage in stages} | {"is_scored"}
    if Stage.READ in stages and not has_output(layout, Stage.FETCH):
        # Which folders images may come from follows from the input: fetch, run alone, needs it.
        sections.add(Stage.FETCH.section)
    merged = {**stored, **{name: wanted[name] for name in wanted if name in sections}}
    commit_text(config_path(layout), _record(merged))


def refuse_other_settings(
    layout: DatasetLayout,
    config: CurationConfig,
    stages: Sequence[Stage],
    not_deciding: Mapping[Stage, Collection[str]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configuration that a folder has and the one that is wanted, as JSON.

    Raises:
        ConfigError: if one of the stages has output that was made with other settings.
    """
    wanted = as_json(config)
    stored = with_later_settings(stored_config(layout) or wanted)
    conflicts: list[str] = []
    redo: Stage | None = None
    for stage in stages:
        section = stage.section
        differing = [
            _difference(f"{section}.{name}", stored[section].get(name), value)
            for name, value in wanted[section].items()
            if name not in not_deciding.get(stage, ()) and stored[section].get(name) != value
        ]
        if differing and has_output(layout, stage):
            conflicts += differing
            redo = redo or stage
    if stored["is_scored"] != wanted["is_scored"] and has_output(layout, Stage.PACK):
        conflicts.append(_difference("is_scored", stored["is_scored"], wanted["is_scored"]))
        redo = redo or Stage.PACK
    recaptioned = stored["recaption"]["model"], wanted["recaption"]["model"]
    if recaptioned[0] and not recaptioned[1] and has_output(layout, Stage.RECAPTION):
        conflicts.append(_difference("recaption.model", *recaptioned))
        redo = redo or Stage.RECAPTION
    if redo is not None:
        raise ConfigError(
            f"{layout.root} was made with other settings:\n  "
            + "\n  ".join(conflicts)
            + "\nUse the same settings to go on, another --out to begin anew, or --redo "
            f"{redo.value} to remove what {redo.value} and the stages after it made"
        )
    return stored, wanted


def record_config(layout: DatasetLayout, config: CurationConfig) -> None:
    """Records the configuration of a folder that no stage wrote to, without asking."""
    commit_text(config_path(layout), _record(as_json(config)))


def refuse_foreign_folder(layout: DatasetLayout) -> None:
    """Keeps a new dataset out of a folder that holds something else.

    Raises:
        ConfigError: if no dataset was begun there and files stand there all the same.
    """
    if exists(record_path(layout)) or _is_config(config_path(layout)):
        return
    foreign = [
        path.removeprefix(f"{layout.root}/")
        for entry in list_files(layout.root)
        for path in _strangers(layout, entry)
    ]
    if foreign:
        raise ConfigError(
            f"{layout.root} holds what is not of a dataset ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): give --out a new or empty folder. If a "
            f"dataset of aligngpt was copied there, copy its {layout.run.rsplit('/', 1)[-1]} "
            "folder too"
        )


def _is_config(path: str) -> bool:
    """Returns whether the configuration of a dataset stands there, of whatever version."""
    if not exists(path):
        return False
    try:
        return {"schema_version", "config"} <= read_json(path).keys()
    except (ValueError, AttributeError):
        return False


def _strangers(layout: DatasetLayout, path: str) -> list[str]:
    """Returns what a new dataset may not find in its folder: a disk for a stage it may."""
    name = path.removeprefix(f"{layout.root}/")
    if name in SYSTEM_FOLDERS:
        return []
    if name == "rejected":
        return [found for inner in list_files(path) for found in _strangers(layout, inner)]
    if path == layout.run:
        return [inner for inner in list_files(path) if not _is_lock(inner)]
    if name in stage_folders():
        of_system = [f"{path}/{folder}" for folder in SYSTEM_FOLDERS]
        return [inner for inner in list_files(path) if inner not in of_system]
    return [path]


def _is_lock(path: str) -> bool:
    """Returns whether a file is a lock that a job made before it recorded anything."""
    if path.rsplit("/", 1)[-1] not in LOCK_FILES:
        return False
    try:
        said = read_bytes(path)
    except OSError:
        return False
    return not said or said.startswith(b'{"host":')


def refuse_other_rows(layout: DatasetLayout, shard: int, fingerprint: str) -> None:
    """Keeps a shard's pairs from being replaced by others once their images are fetched.

    Args:
        fingerprint: of the rows that would be written.

    Raises:
        ConfigError: if there are other rows, with images.
    """
    standing = committed_fingerprint(layout.pairs(shard))
    if standing not in (None, fingerprint) and exists(layout.fetched(shard, "_stats.json")):
        raise ConfigError(
            f"{layout.root} was made from other rows than --pairs has now, or hashes were verified "
            f"or deny-lists given then (first seen to differ: shard {shard:05d}): use the same "
            "input, or --read.verify-hashes, to go on, another --out to begin anew, or --redo read "
            "to remove all that was made; `purge` applies new deny-lists to what is there"
        )


def with_later_settings(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with the settings that came after it, as all was before."""
    defaults = as_json(CurationConfig())
    return {
        name: {**default, **stored.get(name, {})} if isinstance(default, dict) else stored[name]
        for name, default in defaults.items()
    }


def _difference(name: str, stored: Any, wanted: Any) -> str:
    return f"{name} was {json.dumps(stored)} there, this run has {json.dumps(wanted)}"


def has_output(layout: DatasetLayout, stage: Stage) -> bool:
    """Returns whether the stage has written anything into the folder."""
    return bool(stage_files(layout.folder(stage)))


def config_from_json(values: dict[str, Any]) -> CurationConfig:
    """Returns the configuration that was recorded as JSON.

    Raises:
        DatasetError: if this program does not know one of its settings.
    """
    defaults = CurationConfig()
    parts: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            parts[name] = value
            continue
        settings = {
            key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
        }
        try:
            parts[name] = dataclasses.replace(getattr(defaults, name), **settings)
        except (AttributeError, TypeError) as error:
            raise DatasetError(
                f"the folder was made with settings that this program does not know ({error}): "
                "use another --out"
            ) from error
    return CurationConfig(**parts)


def as_json(config: CurationConfig) -> dict[str, Any]:
    """Returns a configuration as JSON holds it: tuples become lists.

    Raises:
        ConfigError: if a recipe set something that cannot be recorded, such as a function.
    """
    given = dataclasses.asdict(config)
    try:
        values: dict[str, Any] = json.loads(json.dumps(given))
    except TypeError as error:
        raise ConfigError(
            f"{_unrecordable(given)}: a configuration is recorded with the dataset, and holds "
            "texts and numbers alone"
        ) from error
    return values


def _unrecordable(values: dict[str, Any]) -> str:
    """Returns which settings are no JSON, and what they are."""
    found = []
    for section, settings in values.items():
        for name, value in settings.items() if isinstance(settings, dict) else ():
            try:
                json.dumps(value)
            except TypeError:
                found.append(f"{section}.{name} is {value!r}")
    return ", ".join(found)


def _record(config: dict[str, Any]) -> str:
    values = {
        "schema_version": SCHEMA_VERSION,
        "aligngpt_version": program_version(),
        "code_sha256": code_sha256(),
        "config": config,
    }
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def code_sha256() -> str:
    """Returns the hash of the program's own source: which code made a dataset."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("schemas", "scoring", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def remove_leftovers(layout: DatasetLayout) -> None:
    """Removes the half-written files of a job that was killed: nobody writes when a job begins.

    They lie where jobs write, and are named after a file that a job writes there.
    """
    if not is_local(layout.root):
        return
    root = Path(local_path(layout.root))
    for place, _, names in os.walk(root):
        for name in names:
            found = LEFTOVER.fullmatch(name) if name.endswith(".tmp") else None
            if found and _is_written(found[1], Path(place).relative_to(root).as_posix()):
                Path(place, name).unlink(missing_ok=True)


def _is_written(name: str, folder: str) -> bool:
    """Returns whether jobs write files of this name to this folder, below the root."""
    if folder == ".":
        return name in ROOT_FILES
    if folder in stage_folders():
        return NUMBERED.fullmatch(name) is not None or name in ("index.json", "edges.json")
    return folder.split("/", 1)[0] == "_run"


def remove_outputs(layout: DatasetLayout, first: Stage, record: FolderRecord) -> None:
    """Removes what a stage and all stages after it made, the markers of completeness first.

    Args:
        record: of what is ours; nothing else is touched.
    """
    names = [*(f"{layout.root}/{name}" for name in ROOT_FILES), layout.train_index]
    for folder, stage in reversed(stage_folders().items()):
        if stage in first.onward:
            names += stage_files(f"{layout.root}/{folder}")
    for path in names:
        if record.lists(path):
            remove(path)
            record.forget(path)
    forget_times(layout, (*first.onward, REPORT))
    forget_stages(layout, first.onward)
