"""The report as a page: what the manifest says, with figures and pictures."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from pipeline.dataset.progress import ProgressReader
from pipeline.report.contents import SCORE_CELLS, Contents, Example
from pipeline.report.control import Control
from pipeline.report.controls import Controls
from pipeline.report.drift import drift_rows
from pipeline.report.figures import balance_figure, score_figure, signal_figure
from pipeline.report.recaption import recaption_page
from schemas.errors import RejectReason
from schemas.manifest import Manifest
from schemas.many_files import read_many
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import list_files, open_read
from schemas.terminal import shown

THUMBNAIL_PIXELS = 176

RETRYABLE = frozenset(reason.value for reason in RejectReason if reason.is_retryable)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is shown beside the manifest."""

    contents: Contents
    controls: Controls


def render_report(layout: DatasetLayout, manifest: Manifest, seen: Seen) -> str:
    """Returns the report as one page of HTML that needs no other file."""
    contents = seen.contents
    template = files("pipeline.report").joinpath("report.jinja").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printable
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.from_string(template).render(
        manifest=manifest,
        name=layout.root.rstrip("/").rsplit("/", 1)[-1],
        balance=balance_figure(manifest.stages),
        scores=_score_figure(contents, seen.controls.counted),
        control=manifest.score_control,
        warnings=seen.controls.warnings,
        tables=seen.controls.tables,
        signal_figures=_signal_figures(seen.controls),
        reasons=_reason_rows(manifest),
        politeness=politeness_rows(manifest),
        levels=list(contents.levels.values()),
        recaption=recaption_page(manifest.recaption, contents, _thumbnail),
        drift=drift_rows(manifest.level_drift),
        sizes=contents.sizes,
        texts_alone=contents.texts_alone,
        galleries=[
            (level, [_card(example) for example in examples])
            for level, examples in contents.examples.items()
        ],
        fetching=_fetching(layout),
        tar_bytes=_bytes_text(sum(shard.tar_bytes for shard in manifest.shards)),
        config=json.dumps(manifest.config, indent=2),
    )


def _score_figure(contents: Contents, control: Control | None) -> Markup | None:
    """Returns the histogram of the scores, that of exchanged pairs behind it where it is known."""
    levels = list(contents.levels.values())
    exchanged = None
    if control is not None:
        exchanged = control.overall.exchanged.reshape(SCORE_CELLS, -1).sum(axis=1)
    return score_figure(contents.score_counts, levels, exchanged)


def _signal_figures(controls: Controls) -> list[tuple[str, Markup]]:
    """Returns each signal's name with its histogram, exchanged pairs behind it where known."""
    return [
        (name, signal_figure(name, known.histogram))
        for name, known in controls.known.items()
        if known.histogram is not None
    ]


POLITENESS = (
    ("robots.txt", "respects_robots", RejectReason.ROBOTS_DISALLOWED),
    ("robots.txt that cannot be reached", "respects_robots", RejectReason.ROBOTS_UNREACHABLE),
    ("X-Robots-Tag", "respects_robots_tag", RejectReason.OPTED_OUT_BY_HEADER),
    ("TDM-Reservation, tdmrep.json", "respects_tdm", RejectReason.TDM_RESERVED),
)
"""What a host can ask of us: the rule, the setting that follows it, the reason that tells of it."""


def politeness_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Returns, for every rule that hosts make, whether it was followed and what it left out."""
    configs = [parent.config for parent in manifest.parents] or [manifest.config]
    return [
        {
            "rule": rule,
            "setting": f"fetch.{setting}",
            "is_followed": all(bool(config["fetch"][setting]) for config in configs),
            "count": manifest.rejected.get(reason.value, 0),
        }
        for rule, setting, reason in POLITENESS
    ]


def _printable(value: Any) -> Any:
    """Returns what a page shows of a value: texts without control characters."""
    return shown(value) if type(value) is str else value


def _reason_rows(manifest: Manifest) -> list[dict[str, Any]]:
    rows = [
        {
            "stage": stage,
            "reason": reason,
            "count": count,
            "ratio": count / manifest.rows_in,
            "is_retryable": reason in RETRYABLE,
        }
        for stage, counts in manifest.stages.items()
        for reason, count in counts.rejected.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def _card(example: Example) -> dict[str, Any]:
    """Returns what a sample's card in the contact sheet shows."""
    row = example.row
    turns = json.loads(row["conversations"]) if row["conversations"] else []
    return {
        "thumbnail": _thumbnail(example),
        "caption": row["caption"],
        "question": turns[0]["value"].replace("<image>", "").strip() if turns else None,
        "clip_score": row["clip_score"],
        "size": f"{row['width']} x {row['height']}" if row["width"] else "text alone",
    }


def _thumbnail(example: Example) -> str | None:
    """Returns a small JPEG of a sample's image, as base64."""
    row = example.row
    if row["image_offset"] is None:
        return None
    with open_read(example.path.removesuffix(".parquet") + ".tar") as file:
        file.seek(row["image_offset"])
        data = file.read(row["image_bytes"])
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    output = io.BytesIO()
    small.save(output, "JPEG", quality=80)
    return base64.b64encode(output.getvalue()).decode()


def _fetching(layout: DatasetLayout) -> dict[str, Any] | None:
    """Returns what the fetch stage took of its workers' time, of which each fetches several shards.

    A shard whose worker nobody remembers counts with the others of that kind.
    """
    worker_of = {
        f"{state.shard:05d}": f"{state.process} on {state.host}"
        for state in ProgressReader(layout).read()
        if state.stage is Stage.FETCH
    }
    spans: dict[str, list[tuple[float, float]]] = {}
    pairs = 0
    paths = list_files(layout.folder(Stage.FETCH), Stage.FETCH.marker)
    for path, content in zip(paths, read_many(paths), strict=True):
        if content is None:
            continue
        stats = json.loads(content)
        shard = path.rsplit("/", 1)[-1].removesuffix(Stage.FETCH.marker)
        begin = stats.get("start_time")
        worker = path if begin is None else worker_of.get(shard, "")
        spans.setdefault(worker, []).append((begin or 0.0, (begin or 0.0) + stats["duration"]))
        pairs += stats["count"]
    seconds = sum(map(covered_seconds, spans.values()))
    if not seconds:
        return None
    return {"seconds": seconds, "pairs_per_second": pairs / seconds}


def covered_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the time that lies within any of some spans, each from its begin to its end."""
    covered, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def _bytes_text(count: float) -> str:
    units: Sequence[str] = ("bytes", "kB", "MB", "GB", "TB", "PB")
    for unit in units[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {units[-1]}"
