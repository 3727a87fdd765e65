"""What a selection or a merger was made from: the record that its folder keeps."""

import dataclasses
import json
from dataclasses import dataclass

from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Parent, StageCounts
from schemas.shards import DatasetLayout
from schemas.storage import commit_text, exists, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """How a dataset was made from others, and what came of it."""

    command: str
    """`select` or `merge`; in the manifest it stands in the place of the stages."""
    fingerprint: str
    """Of the parents and of all that decides what is taken."""
    settings: dict[str, str | int | None]
    """The same for people: what differs in another command for the same folder."""
    parents: tuple[Parent, ...]
    model: dict[str, str] | None
    """Identity of the scoring model of the parents."""
    rejected: dict[str, int]
    """Reason to how many samples of the parents are not here."""

    @property
    def stages(self) -> dict[str, StageCounts]:
        """The balance: samples of the parents in, samples kept."""
        rows_in = sum(parent.samples for parent in self.parents)
        kept = rows_in - sum(self.rejected.values())
        return {self.command: StageCounts(rows_in=rows_in, kept=kept, rejected=self.rejected)}

    @property
    def where(self) -> str | None:
        """The condition that the samples fulfil, if there is one."""
        found = self.settings.get("where")
        return None if found is None else str(found)


def derivation_path(layout: DatasetLayout) -> str:
    """Returns where the record of a derived dataset is kept."""
    return f"{layout.run}/derived.json"


def write_derivation(layout: DatasetLayout, derivation: Derivation) -> None:
    """Records what a dataset is made from."""
    commit_text(
        derivation_path(layout), json.dumps(dataclasses.asdict(derivation), indent=2) + "\n"
    )


def read_derivation(layout: DatasetLayout) -> Derivation | None:
    """Returns what a dataset was made from; None if from pairs.

    Raises:
        DatasetError: if the record is damaged.
    """
    path = derivation_path(layout)
    if not exists(path):
        return None
    try:
        values = read_json(path)
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        return Derivation(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no record of a derived dataset: {error!r}") from error


def is_derived(layout: DatasetLayout) -> bool:
    """Returns whether a folder was made from other datasets, so that no stage ran there."""
    return exists(derivation_path(layout))


def refuse_derived(layout: DatasetLayout) -> None:
    """Raises `ConfigError` if a folder was made from other datasets, so that no stage can run."""
    if is_derived(layout):
        raise ConfigError(
            f"{layout.root} was made from other datasets, by select or merge: no stage can run "
            "there. Give --out another folder"
        )
