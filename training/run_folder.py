"""The folder of a run: whose configuration it holds, and whether the run is finished."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from training.config import TrainConfig
from training.data.dataset import dataset_fingerprint

FREE_TO_CHANGE = (
    "log_every_steps",
    "validate_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "data.workers",
    "data.sequences_per_device",
)
"""Settings that may differ when a run goes on, those of `parallel` too: they decide how it is
computed and what is written down, not what is learnt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What is to be learnt, and where."""

    out: Path
    config: TrainConfig
    data: tuple[str, ...]
    init: str | None

    def check(self) -> None:
        """Raises `ConfigError` if the folder holds a run of another configuration."""
        path = self.out / "config.json"
        if not path.exists():
            return
        differing = differences(json.loads(path.read_text()), json.loads(self._settings()))
        if differing:
            raise ConfigError(
                f"{self.out} holds a run of another configuration: {', '.join(differing[:6])} "
                "differ. Choose another --out, or give the same configuration to go on with that "
                "run"
            )

    def write_config(self) -> None:
        """Writes the resolved configuration."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(self._settings())

    def is_finished(self) -> bool:
        """Returns whether the run has already written its model, from what is there now.

        Raises:
            ConfigError: if it has, but from other data or another first model.
        """
        path = self.out / "finished.json"
        if not path.exists() or not (self.out / "model").exists():
            return False
        if json.loads(path.read_text()) != self._sources():
            raise ConfigError(
                f"{self.out} holds a finished run, but its data or the model that it started from "
                "have changed since: choose another --out, or remove this one"
            )
        return True

    def finish(self) -> None:
        """Notes that the run is finished, and from what."""
        (self.out / "finished.json").write_text(json.dumps(self._sources(), indent=2) + "\n")

    def _settings(self) -> str:
        values: dict[str, Any] = {"data": list(self.data), "init": self.init}
        values["config"] = dataclasses.asdict(self.config)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def _sources(self) -> dict[str, Any]:
        folders = (*self.data, *self.config.data.validation_data)
        files = sorted(Path(self.init).glob("*.safetensors")) if self.init else []
        return {
            "datasets": [dataset_fingerprint(folder) for folder in folders],
            "init": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        }


def differences(found: Any, wanted: Any, names: Sequence[str] = ()) -> list[str]:
    """Returns the names of the settings that differ and may not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [
            difference
            for key in keys
            for difference in differences(found.get(key), wanted.get(key), (*names, key))
        ]
    name = ".".join(names).removeprefix("config.")
    is_free = name in FREE_TO_CHANGE or name.startswith("parallel.")
    return [] if found == wanted or is_free else [name]
