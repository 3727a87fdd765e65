"""Select and merge: a new dataset from the samples of finished ones, through the same packing."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import CurationConfig, PackConfig
from pipeline.dataset.commits import is_committed, stage_fingerprint
from pipeline.dataset.conditions import checked_condition
from pipeline.dataset.derivation import Derivation
from pipeline.dataset.guard import config_from_json, with_later_settings
from pipeline.dataset.progress import ShardProgress, forget_unfinished
from pipeline.dataset.train_samples import TarReaders
from pipeline.dataset.train_shards import MEMBERS_VERSION, write_index, write_train_shard
from pipeline.job.derive import deriving
from pipeline.select.choice import (
    Source,
    Taken,
    choose,
    cut_levels,
    drop_repeated,
    packed,
    taken_samples,
)
from pipeline.select.kept import kept_of_parents
from schemas.columns import file_metadata, with_kept
from schemas.command_line import counted
from schemas.errors import ConfigError
from schemas.levels import check_num_levels
from schemas.manifest import Parent
from schemas.progress import RunProgress, shown
from schemas.records import TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import open_read, remove
from schemas.terminal import Console
from scoring.levels.ranks import parse_rank_mean

NOT_SELECTED = "not_selected"
REPEATED_KEY = "repeated_key"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a new dataset takes from finished ones, and how it is packed."""

    command: str
    """`select` or `merge`."""
    parents: tuple[str, ...]
    """Folders or fsspec URLs, in the order in which they count."""
    where: str | None = None
    """SQL condition; None takes all samples."""
    num_levels: int | None = None
    """Of levels that are cut anew among what is taken; None keeps each sample's own."""
    samples_per_shard: int | None = None
    """None for as many as the first parent has."""


def make_selection(selection: Selection, out: str, console: Console) -> None:
    """Makes the dataset, or what of it is not there yet.

    Raises:
        ConfigError: if the condition is none, the parents do not go together, or the folder holds
            something else.
        DatasetError: if a parent is no finished dataset, or is damaged.
    """
    sources = [Source.at(folder.rstrip("/") or "/") for folder in selection.parents]
    refuse_repeated_parents(sources)
    kept, common = kept_of_parents(sources)
    schema = with_kept(TRAIN_SCHEMA, common)
    condition = None if selection.where is None else checked_condition(selection.where, schema)
    config = derived_config(sources, selection)
    layout = DatasetLayout(out)
    with deriving(layout, selection.parents, console.print) as begin:
        forget_unfinished(layout)
        for source in sources:
            choose(source, condition, _shown)
        chosen = sum(source.taken for source in sources)
        repeated = drop_repeated(sources, _shown)
        total = sum(source.manifest.kept for source in sources)
        if chosen == 0:
            raise ConfigError(
                f"no sample of {total:,} fulfils --where {selection.where!r}: nothing was written"
            )
        wanted = selection.num_levels
        by = config.levels.by
        edges = None if wanted is None else cut_levels(sources, wanted, _shown, by)
        derivation = _derivation(selection, sources, config, total - chosen, repeated)
        begin(derivation, config)
        samples = taken_samples(sources, edges, by)
        took = _write_shards(layout, samples, config.pack, derivation, chosen - repeated, kept)
    console.print(
        f"{chosen - repeated:,} of {total:,} samples"
        f"{f' ({repeated:,} repeated left out)' if repeated else ''}: {layout.root} "
        f"({counted(took, 'train shard')})"
    )


def refuse_repeated_parents(sources: Sequence[Source]) -> None:
    """Raises `ConfigError` if two of the datasets are one and the same."""
    seen: dict[str, str] = {}
    for source in sources:
        if source.manifest_sha256 in seen:
            other = seen[source.manifest_sha256]
            raise ConfigError(f"{other} and {source.layout.root} are the same dataset")
        seen[source.manifest_sha256] = source.layout.root


def derived_config(sources: Sequence[Source], selection: Selection) -> CurationConfig:
    """Returns the configuration of the new dataset: the first parent's, with its own levels.

    Raises:
        ConfigError: if levels or scores of the parents cannot stand in one dataset.
    """
    manifests = [source.manifest for source in sources]
    models = {str(manifest.model) for manifest in manifests if manifest.model is not None}
    if len(models) > 1:
        raise ConfigError(
            "the datasets were scored by different models, whose scores do not compare: score "
            f"them by one first. They are {' and '.join(sorted(models))}"
        )
    levels = {found.num_levels for found in manifests if found.num_levels is not None}
    if selection.num_levels is not None:
        check_num_levels("--cut-levels", selection.num_levels)
    if selection.num_levels is not None and not levels:
        raise ConfigError("--cut-levels needs scores, and these samples have none")
    if len(levels) > 1 and selection.num_levels is None:
        raise ConfigError(
            f"the datasets have {' and '.join(map(str, sorted(levels)))} levels: cut them anew "
            "with --cut-levels N"
        )
    ranked_by = {source.layout.root: _ranked_by(source) for source in sources}
    if len({by for by in ranked_by.values() if by is not None}) > 1:
        told = " and ".join(f"by {by} in {root}" for root, by in ranked_by.items() if by)
        raise ConfigError(
            f"the datasets' levels were cut {told}, which do not compare: level one of them anew "
            "with the --levels.by of the other"
        )
    first = next((m for m in manifests if m.num_levels is not None), manifests[0])
    config = config_from_json(with_later_settings(first.config))
    num_levels = selection.num_levels or next(iter(levels), None)
    pack = PackConfig(samples_per_shard=selection.samples_per_shard or first.samples_per_shard)
    config = dataclasses.replace(config, pack=pack)
    if num_levels is None:
        return config
    if selection.num_levels is not None and parse_rank_mean(config.levels.by) is not None:
        raise ConfigError(
            f"these levels were cut by {config.levels.by}, by ranks over all pairs: leave out "
            "--cut-levels, or level a parent anew with one column as its --levels.by"
        )
    return dataclasses.replace(
        config, levels=dataclasses.replace(config.levels, num_levels=num_levels)
    )


def _ranked_by(source: Source) -> str | None:
    """Returns the column whose ranks decide a dataset's levels; None where it has none."""
    if source.manifest.num_levels is None:
        return None
    return str(with_later_settings(source.manifest.config)["levels"]["by"])


def _derivation(
    selection: Selection,
    sources: Sequence[Source],
    config: CurationConfig,
    not_selected: int,
    repeated: int,
) -> Derivation:
    settings: dict[str, str | int | None] = {
        "where": selection.where,
        "cut_levels": selection.num_levels,
        "samples_per_shard": config.pack.samples_per_shard,
    }
    hashes = [source.manifest_sha256 for source in sources]
    counts = {NOT_SELECTED: not_selected, REPEATED_KEY: repeated}
    parents = [
        Parent(
            folder=source.layout.root,
            manifest_sha256=source.manifest_sha256,
            samples=source.manifest.kept,
            taken=source.taken,
            config=source.manifest.config,
            warnings=source.manifest.handed_on_warnings,
        )
        for source in sources
    ]
    return Derivation(
        command=selection.command,
        fingerprint=stage_fingerprint(Stage.PACK, {**settings, "members": MEMBERS_VERSION}, hashes),
        settings=settings,
        parents=tuple(parents),
        model=next((s.manifest.model for s in sources if s.manifest.model is not None), None),
        rejected={reason: count for reason, count in counts.items() if count},
    )


def _write_shards(
    layout: DatasetLayout,
    samples: Iterator[Taken],
    config: PackConfig,
    derivation: Derivation,
    total: int,
    kept: Sequence[pa.Field],
) -> int:
    """Writes the train shards that do not stand yet and their index; returns how many there are."""
    written: list[tuple[int, int, int]] = []
    with (
        closing(TarReaders()) as readers,
        RunProgress("Packing", total, 0, is_active=True, unit="sample") as progress,
    ):
        while part := list(islice(samples, config.samples_per_shard)):
            shard = len(written)
            fingerprint = stage_fingerprint(Stage.PACK, {"shard": shard}, [derivation.fingerprint])
            marker = layout.train(shard, "parquet")
            if not is_committed(marker, fingerprint):
                remove(marker)
                with ShardProgress(layout, Stage.PACK, shard, len(part)) as traces:

                    def say(done: int, traces: ShardProgress = traces) -> None:
                        traces.update(done, 0)
                        progress.advance()

                    images = (packed(taken, readers) for taken in part)
                    write_train_shard(layout, shard, images, fingerprint, say, kept)
            else:
                for _ in part:
                    progress.advance()
            with open_read(marker) as file:
                tar_bytes = int(file_metadata(pq.read_schema(file))["tar_bytes"])
            written.append((shard, len(part), tar_bytes))
    write_index(layout, written)
    return len(written)


def _shown(title: str, items: Sequence[Any]) -> Iterable[Any]:
    """Passes shards on and shows how many went by, where they are many."""
    return shown(title, items, len(items), unit="shard")
