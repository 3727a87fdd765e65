"""The precision of a dataset's scores: chosen when it begins, and kept wherever it goes on."""

import json
from dataclasses import dataclass, replace

from pipeline.config import CurationConfig
from pipeline.dataset.guard import has_output, stored_config
from schemas.arithmetic import emulation_warning
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_text, exists, read_json
from scoring.config import Precision
from scoring.devices import kind_of_device, precision_here


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledPrecision:
    """What the model that scores is to compute in."""

    precision: Precision
    """Never auto."""
    reason: str
    """Why it is the one, for people; empty where it was asked for by name."""
    warning: str | None
    """What to say of a processor that emulates it; None if this one does not."""

    def __str__(self) -> str:
        """Returns what is said when a job starts."""
        return f"score.precision {self.precision}: {self.reason or 'as asked for'}"


def settle_precision(
    layout: DatasetLayout, config: CurationConfig, redo: Stage | None
) -> SettledPrecision:
    """Returns the precision of a job that scores.

    `auto` is what the folder began with, or what the dataset has whose edges are used, so that no
    score moves because a job goes on elsewhere; in a new folder it is what this machine is fast in.

    Args:
        redo: the first stage whose output is to be removed before the job.
    """
    score = config.score
    precision, reason = score.precision, ""
    if precision == "auto":
        precision, reason = _begun_with(layout, redo) or _as_edges(config) or ("auto", "")
    elif precision == _recorded(layout).get("precision"):
        reason = f"as this dataset began ({_recorded(layout)['reason']})"
    if precision == "auto":
        chosen = precision_here(score)
        precision, reason = chosen.precision, chosen.reason
    warning = emulation_warning("score.precision", precision, kind_of_device(score))
    return SettledPrecision(precision=precision, reason=reason, warning=warning)


def with_settled(config: CurationConfig, settled: SettledPrecision) -> CurationConfig:
    """Returns the configuration with the precision in place of `auto`."""
    return replace(config, score=replace(config.score, precision=settled.precision))


def with_recorded(layout: DatasetLayout, config: CurationConfig) -> CurationConfig:
    """Returns the configuration with what the folder's scores were made in in place of `auto`."""
    recorded = _recorded(layout).get("precision")
    if recorded is None or config.score.precision != "auto":
        return config
    return replace(config, score=replace(config.score, precision=recorded))


def record_precision(layout: DatasetLayout, settled: SettledPrecision) -> None:
    """Writes down why a dataset has its precision, once."""
    if settled.precision != _recorded(layout).get("precision"):
        values = {"precision": settled.precision, "reason": settled.reason or "asked for by name"}
        commit_text(_record_path(layout), json.dumps(values, indent=2) + "\n")


def _begun_with(layout: DatasetLayout, redo: Stage | None) -> tuple[Precision, str] | None:
    """Returns what the folder's scores are computed in, and why; None if it has none yet."""
    stages = list(Stage)
    if redo is not None and stages.index(redo) <= stages.index(Stage.SCORE):
        return None
    recorded = _recorded(layout)
    if recorded:
        return recorded["precision"], f"as this dataset began ({recorded['reason']})"
    stored = _stored(layout)
    if stored is not None and has_output(layout, Stage.SCORE):
        return stored, "as this dataset began"
    return None


def _as_edges(config: CurationConfig) -> tuple[Precision, str] | None:
    """Returns what the scores are computed in that old edges were cut from; None without."""
    source = config.levels.edges_from
    if source is None or source.endswith(".json"):
        return None
    stored = _stored(DatasetLayout(source))
    return None if stored is None else (stored, f"as in {source}, whose edges are used")


def _stored(layout: DatasetLayout) -> Precision | None:
    config = stored_config(layout)
    precision: Precision = "auto" if config is None else config["score"]["precision"]
    return None if precision == "auto" else precision


def _recorded(layout: DatasetLayout) -> dict[str, Precision]:
    path = _record_path(layout)
    values: dict[str, Precision] = read_json(path) if exists(path) else {}
    return values


def _record_path(layout: DatasetLayout) -> str:
    return f"{layout.run}/precision.json"
