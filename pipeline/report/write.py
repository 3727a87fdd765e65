"""Report: `manifest.json` for programs, `report.html` for people, `croissant.json` for catalogues.

All three are made from what the stages left on disk; nothing is counted while the job runs.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow.parquet as pq

from pipeline.config import CurationConfig
from pipeline.dataset.croissant import croissant_metadata
from pipeline.dataset.derivation import Derivation, read_derivation
from pipeline.dataset.train_samples import read_kept_fields
from pipeline.dataset.worktimes import REPORT, replacing_times, timed
from pipeline.report.balance import (
    check_balance,
    count_stages,
    count_truncated_captions,
    stage_tables,
    total_rejections,
)
from pipeline.report.contents import read_contents
from pipeline.report.controls import Controls, read_controls
from pipeline.report.drift import read_drift
from pipeline.report.page import Seen, render_report
from pipeline.report.recaption import read_recaptions
from pipeline.report.signals import read_signals
from schemas.columns import file_metadata
from schemas.errors import DatasetError, RejectReason
from schemas.manifest import Manifest, ShardEntry, StageCounts
from schemas.many_files import map_files
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_text, open_read
from schemas.versions import installed_versions, program_version

EXAMPLES_PER_LEVEL = 8
EXAMPLES_WITHOUT_LEVELS = 24
TIMED_PIECES = 512
"""Most pieces that a step of the report is timed by."""

DECIDING_PACKAGES = (
    "apache-beam",
    "faiss-gpu",
    "numpy",
    "open_clip_torch",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "simplejpeg",
    "torch",
    "torchvision",
    "transformers",
)
"""Whose version can show in the bytes of a dataset."""

HINTS = {
    RejectReason.FORBIDDEN_PORT.value: "fetch.allow_ports names all ports that may be reached",
    RejectReason.FORBIDDEN_ADDRESS.value: "fetch.allow_networks opens private networks",
    RejectReason.FILE_NOT_FOUND.value: "read.image_folder says where paths of images begin",
    RejectReason.BAD_URL.value: "read.image_folder says where paths of images begin",
    RejectReason.MISSING_URL.value: "read.url_column names the column of the images",
    RejectReason.MISSING_CAPTION.value: (
        "read.caption_column names the column of the captions; beside a picture in a folder or a "
        "tar, NAME.txt has its caption"
    ),
    RejectReason.SEVERAL_IMAGES.value: (
        "several images belong to conversations, and are not read from tars"
    ),
    RejectReason.IMAGE_COUNT_MISMATCH.value: "each image needs one <image> in the user's turns",
    RejectReason.UNTRAINABLE_CONVERSATION.value: (
        "a conversation needs a turn of the user and an answer with words"
    ),
    RejectReason.DNS_FAILED.value: (
        "mend the connection or name the proxy by fetch.proxy, then `aligngpt-curate retry`"
    ),
    RejectReason.CONNECT_FAILED.value: "mend the connection, then `aligngpt-curate retry`",
    RejectReason.TIMED_OUT.value: "raise fetch.timeout_seconds, then `aligngpt-curate retry`",
    RejectReason.HOST_UNAVAILABLE.value: "try again later: `aligngpt-curate retry`",
    RejectReason.RATE_LIMITED.value: (
        "lower fetch.requests_per_second_per_host, then `aligngpt-curate retry`"
    ),
    RejectReason.SERVER_ERROR.value: "try again later: `aligngpt-curate retry`",
    RejectReason.HASH_MISMATCH.value: (
        "leave read.verify_hashes off if the hashes are of other bytes: of resized copies, or of "
        "what a site served once"
    ),
    RejectReason.TOO_SMALL.value: "fetch.min_side is the shortest side that is taken",
}
"""Reason to the setting or the step that mends it most often."""


def write_report(
    layout: DatasetLayout, config: CurationConfig, *, may_be_empty: bool = False
) -> Manifest:
    """Writes manifest, report and metadata, and returns the manifest.

    Args:
        may_be_empty: whether it is meant that no pair is left.

    Raises:
        DatasetError: if a stage is not done, so that the counts do not balance.
    """
    with replacing_times(layout, REPORT):
        manifest, seen = _read_all(layout, config, may_be_empty)
        with timed(layout, REPORT, "render") as work:
            work.rows = manifest.rows_in
            kept = read_kept_fields(layout, [int(entry.name) for entry in manifest.shards])
            commit_text(f"{layout.root}/croissant.json", croissant_metadata(manifest, kept))
            commit_text(layout.report, render_report(layout, manifest, seen))
            commit_text(layout.manifest, manifest.to_json())
    return manifest


def _timed_each(
    layout: DatasetLayout, step: str, rows: int, tables: Sequence[str]
) -> Iterator[str]:
    """Yields the tables and times what is done with each, to which belongs its share of rows.

    Of very many, several are a piece: each piece is written down, which is a request to a store.
    """
    size = -(-len(tables) // TIMED_PIECES) or 1
    for begin in range(0, len(tables), size):
        some = tables[begin : begin + size]
        with timed(layout, REPORT, step) as work:
            yield from some
            end = begin + len(some)
            work.rows = rows * end // len(tables) - rows * begin // len(tables)


def _read_all(
    layout: DatasetLayout, config: CurationConfig, may_be_empty: bool
) -> tuple[Manifest, Seen]:
    """Returns the manifest of what the stages left, and what there is to show of it."""
    derivation = read_derivation(layout)
    if derivation is None:
        stages = _finished_stages(layout, config, may_be_empty)
    else:
        stages = derivation.stages
    counts = list(stages.values())
    num_levels = config.levels.num_levels if config.is_scored else None
    wanted = EXAMPLES_PER_LEVEL if config.is_scored else EXAMPLES_WITHOUT_LEVELS

    def each(step: str) -> Callable[[Sequence[str]], Iterator[str]]:
        return partial(_timed_each, layout, step, counts[0].rows_in)

    packed = stage_tables(layout, Stage.PACK)
    contents = read_contents(each("report")(packed), num_levels, wanted)
    recaption, contents.recaptioned = read_recaptions(packed)
    controls = Controls(signals=tuple(read_signals(packed)))
    if Stage.SCORE.value in stages:
        controls = read_controls(
            layout,
            controls.signals,
            list(contents.levels.values()),
            each("control"),
            each("signals"),
        )
    manifest = Manifest(
        aligngpt_version=program_version(),
        config=json.loads(json.dumps(dataclasses.asdict(config))),
        versions=installed_versions(DECIDING_PACKAGES),
        model=_model_identity(layout, derivation) if config.is_scored else None,
        rows_in=counts[0].rows_in,
        kept=counts[-1].kept,
        rejected=total_rejections(counts),
        stages=stages,
        num_levels=num_levels,
        level_edges=[level.as_dict() for level in contents.levels.values()] or None,
        level_drift=read_drift(layout),
        score_control=controls.score,
        level_control=controls.levels,
        no_level_control=controls.no_levels,
        signals=list(controls.signals),
        recaption=recaption,
        truncated_captions=(
            count_truncated_captions(layout) if Stage.SCORE.value in stages else None
        ),
        parents=[] if derivation is None else list(derivation.parents),
        where=None if derivation is None else derivation.where,
        samples_per_shard=config.pack.samples_per_shard,
        shards=[*map_files(_shard_entry, packed)],
    )
    return manifest, Seen(contents, controls)


def _finished_stages(
    layout: DatasetLayout, config: CurationConfig, may_be_empty: bool
) -> dict[str, StageCounts]:
    """Returns the balance of the stages.

    Raises:
        DatasetError: if a stage is not done, so that the counts do not balance.
    """
    stages = count_stages(layout)
    if not stages:
        hint = "the input has no rows. Mend it and run again with --redo read"
        raise DatasetError(f"{layout.root} has no pairs: {hint}")
    if not may_be_empty:
        refuse_nothing_kept(layout, stages)
    missing = [stage.value for stage in config.stages if stage.value not in stages]
    if stages[Stage.READ.value].kept and missing:
        raise DatasetError(f"{layout.root} is not finished: run `{missing[0]}` first")
    check_balance(layout, stages)
    return stages


def refuse_nothing_kept(layout: DatasetLayout, stages: Mapping[str, StageCounts]) -> None:
    """Says which stage rejected all that it was given, and why.

    Raises:
        DatasetError: if there is such a stage.
    """
    for name, counts in stages.items():
        if counts.rows_in and not counts.kept:
            reasons = sorted(counts.rejected.items(), key=lambda item: -item[1])
            told = ", ".join(f"{reason} {number:,}" for reason, number in reasons[:3])
            hint = next((HINTS[reason] for reason, _ in reasons if reason in HINTS), None)
            raise DatasetError(
                f"no pair is left in {layout.root}: {name} rejected all {counts.rows_in:,} "
                f"({told}). `aligngpt-curate inspect {layout.root}` shows examples"
                f"{f'; {hint}' if hint else ''}. Mend the cause and run again with --redo {name}"
            )


def _model_identity(layout: DatasetLayout, derivation: Derivation | None) -> dict[str, str] | None:
    """Returns which model made the scores, as the scored files or the parents say."""
    if derivation is not None:
        return derivation.model
    for path in stage_tables(layout, Stage.SCORE):
        with open_read(path) as file:
            model = file_metadata(pq.read_schema(file)).get("model")
        if model is not None:
            return {name: str(value) for name, value in json.loads(model).items()}
    return None


def _shard_entry(path: str) -> ShardEntry:
    with open_read(path) as file:
        data = file.read()
    parquet = pq.ParquetFile(io.BytesIO(data))
    stored = file_metadata(parquet.schema_arrow)
    return ShardEntry(
        name=path.rsplit("/", 1)[-1].removesuffix(".parquet"),
        samples=parquet.metadata.num_rows,
        tar_bytes=int(stored["tar_bytes"]),
        tar_sha256=stored["tar_sha256"],
        parquet_bytes=len(data),
        parquet_sha256=hashlib.sha256(data).hexdigest(),
    )
