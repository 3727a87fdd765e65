"""The folder of a run: its configuration, who is at work in it, and whether it is finished."""

import dataclasses
import errno
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError, StorageError
from schemas.storage import commit_text
from training.config import TrainConfig
from training.data.dataset import dataset_fingerprint
from training.data.mapped import MappedFolders
from training.engine.launch import by_first

FREE_TO_CHANGE = (
    "log_every_steps",
    "wandb_project",
    "told_samples",
    "validate_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "keep_checkpoint_every_hours",
    "data.workers",
    "data.rows_folder",
    "data.on_corrupt",
    "data.sequences_per_device",
    "precision_reason",
)
"""Settings that may differ when a run goes on, those of `parallel` too: they decide how it is
computed and what is written down, not what is learnt."""
WRITTEN_FROM_THE_START = (
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "wandb",
    "checkpoints",
    ".metrics.jsonl.tmp",
)
WRITTEN_AT_THE_END = (
    "model",
    "loss.png",
    "levels.json",
    "levels.png",
    "finished.json",
    ".model.tmp",
)
"""What a run writes to its folder. Before it first does, nothing may stand there by that name."""
SHOWN = 6
"""Most differing settings that a message names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting that is not what it was when the run began."""

    name: str
    found: Any
    wanted: Any

    def __str__(self) -> str:
        """Returns what was and what is, as a line of a message."""
        return f"{self.name} was {json.dumps(self.found)} and is now {json.dumps(self.wanted)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What is to be learnt, and where."""

    out: Path
    config: TrainConfig
    data: tuple[str, ...]
    init: str | None
    precision_reason: str = ""
    """Why the run computes in its precision."""

    def facts(self) -> dict[str, Any]:
        """Returns what must be the same in all processes, so that they do the same.

        Raises:
            ConfigError: if there is no run to be begun.
        """
        is_finished = self.is_finished()
        if not is_finished:
            self.check_place()
        values: dict[str, Any] = json.loads(self._settings())
        values["config"]["data"].pop("workers")
        return {"is_finished": is_finished, **values, "files": self._sources()}

    def check_place(self) -> None:
        """Raises `ConfigError` if a run cannot be written where it is to go."""
        out = self.out
        try:
            parent = next(path for path in (out, *out.absolute().parents) if path.exists())
            can_write = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
            is_dataset = (out / "manifest.json").exists() or (out / "_run").exists()
            above = [path for path in out.absolute().parents if _is_dataset(path)]
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}") from error
        if not can_write:
            raise ConfigError(f"--out {out}: {parent} is no folder that can be written to")
        if is_dataset:
            raise ConfigError(f"--out {out} is a dataset: give the run a folder of its own")
        if above:
            raise ConfigError(f"--out {out} lies in the dataset {above[0]}: give it another place")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder; all processes call it together.

        Raises:
            ConfigError: in all of them, if another run is at work in the folder.
        """
        import torch.distributed as dist

        with ExitStack() as held:
            is_free = [dist.get_rank() != 0 or self._lock(held)]
            dist.broadcast_object_list(is_free, src=0)
            if not is_free[0]:
                raise ConfigError(
                    f"another run is at work in {self.out}: wait for it, stop it, or choose "
                    "another --out"
                )
            check_shared(self.out, "--out")
            yield

    def _lock(self, held: ExitStack) -> bool:
        """Returns whether this process now holds the folder; if it dies, the folder is free."""
        self.out.mkdir(parents=True, exist_ok=True)
        file = held.enter_context((self.out / ".lock").open("a"))
        try:
            # Of the process, so that data workers, which outlive it by seconds, do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network storage has no locks; the run is worth more than the check.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def check(self) -> None:
        """Raises `ConfigError` if the folder holds what a run of another configuration learnt.

        And if it holds what no run wrote, in the place of what this one would write or remove.
        """
        foreign = self._foreign((*WRITTEN_FROM_THE_START, *WRITTEN_AT_THE_END))
        if foreign:
            raise ConfigError(
                f"--out {self.out} holds {', '.join(foreign)}, which no run of aligngpt wrote and "
                "which a run would replace. Nothing was touched: give the run a folder of its own, "
                "or move that elsewhere"
            )
        path = self.out / "config.json"
        if not path.exists() or not self.holds_weights():
            return
        found = _read_record(path)
        found["config"] = _with_defaults(found["config"])
        differing = differences(found, json.loads(self._settings()))
        if differing:
            lines = "".join(f"\n  {difference}" for difference in differing[:SHOWN])
            rest = f"\n  and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise ConfigError(
                f"{self.out} holds a run of another configuration:{lines}{rest}\n"
                "Give the old values to go on with that run (where a default has changed with the "
                f"version of aligngpt, too), or choose another --out. {path} has all of them"
            )

    @property
    def rows(self) -> MappedFolders:
        """Where rows of the data and plans are kept: of small datasets only if asked for."""
        if self.config.data.rows_folder:
            return MappedFolders(Path(self.config.data.rows_folder), held_rows=0)
        return MappedFolders(self.out / "rows")

    def holds_weights(self) -> bool:
        """Returns whether there is anything that another configuration could spoil."""
        return (self.out / "checkpoints" / "latest").exists() or (self.out / "model").exists()

    @property
    def _record(self) -> Path:
        return self.out / ".written.json"

    def _written(self) -> set[str]:
        """Returns the names in the folder that are the run's: its own record lists them.

        Of a run from before there were records, all are, if its configuration stands there.
        """
        if self._record.exists():
            return set(_read_record(self._record))
        try:
            found = json.loads((self.out / "config.json").read_text())
        except (OSError, ValueError):
            return set()
        is_run = isinstance(found, dict) and {"config", "data", "init"} <= found.keys()
        return {*WRITTEN_FROM_THE_START, *WRITTEN_AT_THE_END} if is_run else set()

    def _foreign(self, names: Sequence[str]) -> list[str]:
        written = self._written()
        return [name for name in names if name not in written and (self.out / name).exists()]

    def claim(self, names: Sequence[str]) -> None:
        """Lists names as the run's own, before it writes them for the first time.

        Raises:
            StorageError: if something came to stand there since the run began.
        """
        foreign = self._foreign(names)
        if foreign:
            raise StorageError(
                f"{self.out / foreign[0]} came to stand there while the run was at work, and no "
                "run wrote it: move it elsewhere and run the same command again; the last "
                "checkpoint stays"
            )
        text = json.dumps(sorted({*self._written(), *names})) + "\n"
        commit_text(str(self._record), text)

    def write_config(self) -> None:
        """Writes the resolved configuration, whole or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.claim(WRITTEN_FROM_THE_START)
        commit_text(str(self.out / "config.json"), self._settings())

    def is_finished(self) -> bool:
        """Returns whether the run has already written its model, from what is there now.

        Raises:
            ConfigError: if it has, but by other settings, from other data or another first model.
        """
        path = self.out / "finished.json"
        if not path.exists() or not (self.out / "model").exists():
            return False
        if _read_record(path) != self._sources():
            self.check()  # other folders or settings say more than that the data is another
            raise ConfigError(
                f"{self.out} holds a finished run, but its data or the model that it started from "
                "have changed since: choose another --out, or remove this one"
            )
        return True

    def finish(self) -> None:
        """Notes that the run is finished, and from what; its copy of the rows goes."""
        text = json.dumps(self._sources(), indent=2) + "\n"
        commit_text(str(self.out / "finished.json"), text)
        if not self.config.data.rows_folder:
            self.rows.remove()

    def _settings(self) -> str:
        values: dict[str, Any] = {"data": list(self.data), "init": self.init}
        values["precision_reason"] = self.precision_reason
        values["config"] = dataclasses.asdict(self.config)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def _sources(self) -> dict[str, Any]:
        folders = (*self.data, *self.config.data.validation_data)
        return {
            "datasets": [dataset_fingerprint(folder) for folder in folders],
            "init": [list(file) for file in self.init_files()],
        }

    def init_files(self) -> tuple[tuple[Any, ...], ...]:
        """Returns name, size and time of each file of weights that the run starts from."""
        files = sorted(Path(self.init).glob("*.safetensors")) if self.init else []
        return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


def check_shared(folder: Path, option: str) -> None:
    """Raises ConfigError in all processes if hosts have different folders by this name.

    All processes call it together; it makes the folder.
    """
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return
    probe = folder / by_first(lambda: _made_probe(folder, option))
    is_asked = os.environ["LOCAL_RANK"] == "0" and dist.get_rank() != 0
    lacks = is_asked and not _is_there(probe)
    hosts: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname() if lacks else None)
    if dist.get_rank() == 0:
        probe.unlink(missing_ok=True)
    if any(hosts):
        raise ConfigError(
            f"{option} {folder} is another folder on {', '.join(sorted({h for h in hosts if h}))} "
            "than on the host of the first process: all hosts read what one of them wrote there. "
            "Give a folder on storage that they share, by its whole path"
        )


def _made_probe(folder: Path, option: str) -> str:
    """Returns the name of a new file in a folder."""
    name = f".shared-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        raise ConfigError(f"{option} {folder} cannot be written: {error.strerror}") from error
    return name


def _is_there(probe: Path) -> bool:
    """Returns whether another host's file is there, whatever this one remembers of the folder.

    Network storage remembers for up to a minute that something was not there. To make something
    anew, it asks the server.
    """
    made = [path for path in (probe.parent, *probe.parent.parents) if not path.exists()]
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return True
    except OSError:
        return False
    probe.unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()
    return False


def _read_record(path: Path) -> Any:
    """Returns what a run noted in its folder.

    Raises:
        ConfigError: if it cannot be read, as after a disk's failure.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}, which a run wrote, cannot be read ({error}): put it back from a copy, or "
            "choose another --out"
        ) from error


def _is_dataset(folder: Path) -> bool:
    return (folder / "_run" / "config.json").exists()


def differences(found: Any, wanted: Any, names: Sequence[str] = ()) -> list[Difference]:
    """Returns the settings that differ and may not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [
            difference
            for key in keys
            for difference in differences(found.get(key), wanted.get(key), (*names, key))
        ]
    name = ".".join(names).removeprefix("config.")
    is_free = name in FREE_TO_CHANGE or name.startswith("parallel.")
    if found == wanted or is_free:
        return []
    return [Difference(name=name, found=found, wanted=wanted)]


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with the settings that came after it, at their defaults."""
    model = config.get("model", {})
    if "projector" in model:  # its name until the connectors came
        model = {"connector": model["projector"]} | {
            name: value for name, value in model.items() if name != "projector"
        }
        config = {**config, "model": model}
    defaults = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    merged = {**defaults, **config}
    for part, values in defaults.items():
        if isinstance(values, dict) and isinstance(config.get(part), dict):
            merged[part] = {**values, **config[part]}
    return merged
