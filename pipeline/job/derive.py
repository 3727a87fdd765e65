"""A dataset that is made from finished ones: its folder is held, recorded and reported on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.config import CurationConfig
from pipeline.dataset.derivation import Derivation, read_derivation, write_derivation
from pipeline.dataset.guard import (
    record_config,
    refuse_foreign_folder,
    remove_leftovers,
    stored_config,
)
from pipeline.dataset.ownership import recorded_folder
from pipeline.job.lock import hold_folder
from pipeline.job.log import logging_to_folder
from pipeline.report.write import write_report
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import lies_within


@contextmanager
def deriving(
    layout: DatasetLayout, parents: Sequence[str], say: Callable[[str], None]
) -> Iterator[Callable[[Derivation, CurationConfig], None]]:
    """Keeps a folder for a dataset that is made from others, and writes its reports at the end.

    Yields a function that records what is made, to be called before any shard is written; it
    refuses what does not go on with what stands there.

    Raises:
        ConfigError: if the folder holds something else, lies in a parent or holds one.
    """
    for parent in parents:
        if lies_within(layout.root, parent) or lies_within(parent, layout.root):
            raise ConfigError(
                f"--out {layout.root} and the dataset {parent} lie in each other: give --out a "
                "folder beside it"
            )
    refuse_foreign_folder(layout)
    chosen: list[CurationConfig] = []
    with (
        hold_folder(layout),
        recorded_folder(layout, say) as record,
        logging_to_folder(layout),
    ):
        remove_leftovers(layout)

        def begin(derivation: Derivation, config: CurationConfig) -> None:
            _refuse_other_dataset(layout, derivation)
            write_derivation(layout, derivation)
            record_config(layout, config)
            record.begin((Stage.PACK,), has_report=True)
            chosen.append(config)

        yield begin
        write_report(layout, chosen[0])


def _refuse_other_dataset(layout: DatasetLayout, derivation: Derivation) -> None:
    """Raises `ConfigError` if the folder was made from pairs, other parents or otherwise."""
    standing = read_derivation(layout)
    if standing is None and stored_config(layout) is not None:
        raise ConfigError(f"{layout.root} holds a curated dataset: give --out a new folder")
    if standing is None or standing.fingerprint == derivation.fingerprint:
        return
    differing = [
        f"{name} was {standing.settings.get(name)!r} there, this run has {value!r}"
        for name, value in derivation.settings.items()
        if standing.settings.get(name) != value
    ]
    if standing.command != derivation.command:
        differing.insert(0, f"it was made by {standing.command}")
    raise ConfigError(
        f"{layout.root} was made otherwise ({'; '.join(differing) or 'a parent has changed'}): "
        "use the same settings to go on, or another --out"
    )


def report_anew(layout: DatasetLayout, config: CurationConfig) -> None:
    """Writes manifest, report and Croissant of a dataset by what its files hold now, if anything.

    Raises:
        DatasetError: if its counts do not balance.
    """
    write_report(layout, config, may_be_empty=True)
