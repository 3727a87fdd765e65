"""Inspect: what is in a dataset, finished or not, as tables in the terminal."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from pipeline.dataset.derivation import read_derivation
from pipeline.dataset.manifests import refuse_no_folder
from pipeline.report.balance import count_stages, count_truncated_captions, stage_tables
from pipeline.report.contents import Contents, LevelContents, read_contents
from pipeline.report.controls import Controls, read_controls
from pipeline.report.drift import drift_rows, read_drift
from pipeline.report.recaption import read_recaptions, recaption_line, recaption_table
from pipeline.report.signals import read_signals
from schemas.columns import file_metadata, read_table
from schemas.command_line import counted
from schemas.errors import DatasetError
from schemas.manifest import LevelDrift, ScoreControl, SignalSummary, StageCounts
from schemas.records import LEVELLED_SCHEMA, REJECTION_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import list_files, open_read
from schemas.terminal import Console, shown

EXAMPLES_PER_LEVEL = 3
CAPTION_CHARACTERS = 72


def inspect_dataset(root: str, console: Console | None = None) -> None:
    """Prints what a dataset holds, from its Parquet files alone.

    Raises:
        ConfigError: if there is no such folder.
        DatasetError: if it holds no dataset.
    """
    console = console or Console()
    refuse_no_folder(root)
    layout = DatasetLayout(root)
    derivation = read_derivation(layout)
    stages = count_stages(layout) if derivation is None else derivation.stages
    if not stages:
        raise DatasetError(
            f"{root} is no dataset: it has no pairs/ folder; make one with `aligngpt-curate curate`"
        )
    packed = stage_tables(layout, Stage.PACK)
    contents = read_contents(packed, None, EXAMPLES_PER_LEVEL)
    levels = list(contents.levels.values()) if packed else _levels_before_pack(layout)
    console.print(stages_table(layout, stages))
    if any(counts.rejected for counts in stages.values()):
        console.print(reasons_table(layout, stages))
    if levels:
        console.print(levels_table(levels))
    controls = Controls(signals=tuple(read_signals(packed)))
    if Stage.SCORE.value in stages:
        controls = read_controls(layout, controls.signals, levels)
    for parent in () if derivation is None else derivation.parents:
        _print_warnings([f"Of {parent.folder}: {warning}" for warning in parent.warnings], console)
    _print_controls(controls, console)
    if controls.signals:
        console.print(signals_table(controls.signals))
    _print_recaptions(packed, max([0, *(level.level for level in levels)]), console)
    drift = read_drift(layout)
    if drift is not None:
        console.print(drift_table(drift))
    if Stage.SCORE.value in stages:
        console.print(
            f"{count_truncated_captions(layout):,} of {stages[Stage.SCORE.value].kept:,} scored "
            "captions were longer than the model's context."
        )
    if packed:
        console.print(sizes_table(contents))
        console.print(examples_table(contents))
        console.print(_shards_line(packed, contents))
    else:
        console.print("Not packed yet: no train shards.")


def stages_table(layout: DatasetLayout, stages: dict[str, StageCounts]) -> Table:
    """Returns the balance of the stages, and how many of their shards are done."""
    table = Table(title="Stages", title_justify="left")
    table.add_column("stage")
    for name in ("shards done", "rows in", "kept", "rejected"):
        table.add_column(name, justify="right")
    for stage, counts in stages.items():
        rejected = sum(counts.rejected.values())
        # A selection and a merger stand in the place of all stages; they leave train shards.
        kind = Stage(stage) if stage in list(Stage) else Stage.PACK
        shards = len(stage_tables(layout, kind))
        numbers = (shards, counts.rows_in, counts.kept, rejected)
        table.add_row(stage, *(f"{number:,}" for number in numbers))
    return table


def reasons_table(layout: DatasetLayout, stages: dict[str, StageCounts]) -> Table:
    """Returns why rows were rejected, by stage, with an example of each reason."""
    table = Table(title="Rejected", title_justify="left")
    for name in ("stage", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    # Rich takes room from columns that may wrap before any other; the cells still do not wrap.
    table.add_column("for example")
    for stage, counts in stages.items():
        is_stage = stage in list(Stage)
        wanted = set(counts.rejected)
        examples = rejected_examples(layout, Stage(stage), wanted) if is_stage else {}
        for reason, count in sorted(counts.rejected.items(), key=lambda item: -item[1]):
            example = Text(examples.get(reason, ""), no_wrap=True, overflow="ellipsis")
            table.add_row(stage, reason, f"{count:,}", example)
    return table


def levels_table(levels: list[LevelContents]) -> Table:
    """Returns the levels with their counts and score ranges."""
    table = Table(title="Alignment levels", title_justify="left")
    for name in ("level", "samples", "lowest score", "mean score", "highest score"):
        table.add_column(name, justify="right")
    for level in levels:
        scores = (level.lowest_score, level.mean_score, level.highest_score)
        shown = ["-" if score is None else f"{score:.4f}" for score in scores]
        table.add_row(str(level.level), f"{level.count:,}", *shown)
    return table


def _print_recaptions(packed: Sequence[str], num_levels: int, console: Console) -> None:
    found, _ = read_recaptions(packed)
    if found is None:
        return
    console.print(recaption_line(found), highlight=False, markup=False)
    if found.warning is not None:
        console.print(found.warning, style="yellow", highlight=False, markup=False)
    console.print(recaption_table(found, num_levels))


def _print_warnings(warnings: Sequence[str], console: Console) -> None:
    for warning in warnings:
        console.print(warning, style="yellow", highlight=False, markup=False)


def _print_controls(controls: Controls, console: Console) -> None:
    """Prints whether score, levels and signals tell anything, where that can be said."""
    _print_warnings(controls.warnings, console)
    for found in controls.tables:
        told = f"{found.beats_ratio:.3f} ({_between(found.beats_interval)})"
        under = f"{found.auc:.3f} ({_between(found.auc_interval)})"
        console.print(
            f"By {found.signal} a pair beats the same picture with another caption {told} of the "
            f"time, 0.5 is chance; area under the curve {under}; {found.pairs:,} pairs.",
            highlight=False,
        )
        if found.levels:
            console.print(control_table(found))
    if controls.no_levels is not None:
        console.print(
            f"Whether the levels tell anything of the pairs cannot be said: {controls.no_levels}.",
            highlight=False,
        )
    for found in controls.all:
        for group in found.standing_out:
            console.print(
                f"{group.kind} {shown(group.name)}: {group.beats_ratio:.3f} "
                f"({_between(group.beats_interval)}), {group.pairs:,} pairs: of these "
                f"{found.signal} tells much less.",
                highlight=False,
                markup=False,
            )


def control_table(control: ScoreControl) -> Table:
    """Returns how the pairs of each level do beside exchanged ones."""
    title = f"Pairs beside exchanged ones, by {control.signal}"
    table = Table(title=title, title_justify="left")
    names = ("level", "beat one", "95 %", "by chance", "area", "exchanged so")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in control.levels:
        ratio = row.exchanged_ratio
        table.add_row(
            str(row.level),
            f"{row.beats_ratio:.3f}",
            _between(row.beats_interval),
            f"{row.by_chance:.3f}",
            f"{row.auc:.3f}",
            "-" if ratio is None else f"{100 * ratio:.2f} %",
        )
    return table


def _between(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def signals_table(signals: Sequence[SignalSummary]) -> Table:
    """Returns what the signals of the samples are like, and whether they tell anything of pairs."""
    table = Table(title="Signals", title_justify="left")
    table.add_column("signal", no_wrap=True)
    for name in ("lowest", "mean", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("beats an exchanged pair")
    table.add_column("what it is")
    for signal in signals:
        values = (signal.lowest, signal.mean, signal.highest)
        texts = ["-" if value is None else f"{value:.4f}" for value in values]
        control = signal.no_control or "-"
        if signal.control is not None:
            interval = _between(signal.control.beats_interval)
            control = f"{signal.control.beats_ratio:.3f} ({interval})"
        table.add_row(signal.name, *texts, control, shown(signal.description))
    return table


def drift_table(drift: LevelDrift) -> Table:
    """Returns the levels' samples here and in the data that their edges were cut in."""
    index = f"{drift.population_stability_index:.4f}"
    table = Table(
        title=f"Drift against old edges: population stability index {index}", title_justify="left"
    )
    for name in ("level", "samples where cut", "of all", "samples here", "of all"):
        table.add_column(name, justify="right")
    for row in drift_rows(drift):
        shares = [f"{100 * row[name]:.1f} %" for name in ("expected_ratio", "ratio")]
        table.add_row(
            str(row["level"]), f"{row['expected']:,}", shares[0], f"{row['count']:,}", shares[1]
        )
    return table


def sizes_table(contents: Contents) -> Table:
    """Returns how many images have which size."""
    table = Table(title="Images", title_justify="left")
    table.add_column("longest side, pixels")
    table.add_column("images", justify="right")
    for name, count in contents.sizes:
        table.add_row(name, f"{count:,}")
    if contents.texts_alone:
        table.add_row("text alone", f"{contents.texts_alone:,}")
    return table


def examples_table(contents: Contents) -> Table:
    """Returns a few samples of each level."""
    table = Table(title="Examples", title_justify="left")
    for name in ("level", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("caption", overflow="ellipsis")
    table.add_column("key", no_wrap=True)
    for level, examples in contents.examples.items():
        for example in examples:
            row = example.row
            score = "-" if row["clip_score"] is None else f"{row['clip_score']:.4f}"
            caption = Text(_short(row["caption"]))
            table.add_row("-" if level is None else str(level), score, caption, row["key"])
    return table


def _levels_before_pack(layout: DatasetLayout) -> list[LevelContents]:
    levels: dict[int, LevelContents] = {}
    for path in stage_tables(layout, Stage.LEVEL):
        with open_read(path) as file:
            table = read_table(file, LEVELLED_SCHEMA, columns=["clip_score", "alignment_level"])
        scores = np.asarray(table["clip_score"].to_numpy(), np.float64)
        numbers = np.asarray(table["alignment_level"].to_numpy())
        for number in np.unique(numbers).tolist():
            level = levels.setdefault(number, LevelContents(number))
            level.add(scores[numbers == number])
    return [levels[number] for number in sorted(levels)]


def rejected_examples(layout: DatasetLayout, stage: Stage, wanted: set[str]) -> dict[str, str]:
    """Returns reason to what happened to the first row that was rejected for it."""
    examples: dict[str, str] = {}
    if not wanted:
        return examples
    for path in list_files(layout.rejected_folder(stage), ".parquet"):
        with open_read(path) as file:
            table = read_table(file, REJECTION_SCHEMA, ["reason", "detail", "url", "caption"])
        for reason in wanted - set(examples):
            found = np.flatnonzero(np.asarray(table["reason"].to_pylist()) == reason)
            if len(found):
                row = table.slice(int(found[0]), 1).to_pylist()[0]
                text = row["detail"] or ""
                place = row["url"] or row["caption"] or ""
                examples[reason] = _short(f"{place}: {text}" if place else text)
        if set(examples) == wanted:
            break
    return examples


def _short(text: str) -> str:
    """Returns a text on one line, its beginning if it is long."""
    line = shown(" ".join(text.split()))
    if len(line) > CAPTION_CHARACTERS:
        line = line[: CAPTION_CHARACTERS - 1] + "…"
    return line


def _shards_line(packed: list[str], contents: Contents) -> str:
    size = 0
    for path in packed:
        with open_read(path) as file:
            size += int(file_metadata(pq.read_schema(file))["tar_bytes"])
    shards, samples = counted(len(packed), "train shard"), counted(contents.samples, "sample")
    return f"{shards}, {samples}, {size:,} bytes of tar."
