"""The columns of a dataset made from others beside our own: the inputs', signals, captions."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from pipeline.dataset.train_samples import read_kept_fields
from pipeline.select.choice import Source
from schemas.columns import RECAPTION_FIELD, SIGNAL_FIELD
from schemas.errors import ConfigError

MAY_DIFFER = frozenset(
    {"argument", "batch_size", "fingerprint", "reference", "threads", "versions"}
)
"""Of how a signal was made: where its file lay, what shows in the last digits alone, and the sample
of its own dataset that pairs were held against."""


def kept_of_parents(sources: Sequence[Source]) -> tuple[list[pa.Field], list[pa.Field]]:
    """Returns the columns that any dataset has, and those that all have.

    Raises:
        ConfigError: if one is of several types, spelt in several ways, or a signal that was made
            in several ways.
    """
    found = [read_kept_fields(source.layout, source.shards) for source in sources]
    fields: dict[str, pa.Field] = {}
    for field in chain.from_iterable(found):
        known = fields.get(field.name, field)
        if known.type != field.type:
            raise ConfigError(
                f"column {field.name!r} is of the type {known.type} in one dataset and of "
                f"{field.type} in another: curate one of them anew with another name for it"
            )
        _refuse_other_signal(known, field)
        fields[field.name] = _of_both(known, field)
    spelt: dict[str, str] = {}
    for name in fields:
        other = spelt.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"one dataset has a column {other!r}, another {name!r}, which SQL does not tell "
                "apart: curate one of them anew with another name for it"
            )
    everywhere = set(fields).intersection(*({field.name for field in one} for one in found))
    return list(fields.values()), [fields[name] for name in fields if name in everywhere]


def _refuse_other_signal(known: pa.Field, field: pa.Field) -> None:
    """Raises `ConfigError` if one name stands for two signals, whose values do not compare."""
    one, other = _made(known, SIGNAL_FIELD), _made(field, SIGNAL_FIELD)
    differing = {
        name for name in {*one, *other} - MAY_DIFFER if str(one.get(name)) != str(other.get(name))
    }
    if differing:
        raise ConfigError(
            f"column {field.name!r} was made in two ways, whose values do not compare: by "
            f"{_told(one)} in one dataset, by {_told(other)} in another (they differ in "
            f"{', '.join(sorted(differing))}). Score one of them with the signal of the other, or "
            "give it another name (--score.signals NAME=SIGNAL)"
        )


def _told(made: dict[str, Any]) -> str:
    """Returns a signal as `--score.signals` names it."""
    if not made:
        return "the input itself"
    argument = f":{made['argument']}" if made.get("argument") else ""
    return argument[1:] if made.get("kind") == "function" else f"{made.get('kind')}{argument}"


def _of_both(known: pa.Field, field: pa.Field) -> pa.Field:
    """Returns a field that tells how the columns of both datasets were made."""
    metadata = dict(known.metadata)
    for about in (SIGNAL_FIELD, RECAPTION_FIELD):
        one, other = _made(known, about), _made(field, about)
        if one != other:
            both = {name: _joined(one.get(name), other.get(name)) for name in {**one, **other}}
            metadata[about] = json.dumps(both, sort_keys=True).encode()
    return pa.field(known.name, known.type, metadata=metadata)


def _made(field: pa.Field, about: bytes) -> dict[str, Any]:
    """Returns how a column was made; empty for one of another kind."""
    made: dict[str, Any] = json.loads(field.metadata.get(about, b"{}"))
    return made


def _joined(one: Any, other: Any) -> Any:
    """Returns a value that both have, or a text that names each."""
    if one == other or None in (one, other):
        return one if other is None else other
    told = str(one).split(" and ")
    return " and ".join(told if str(other) in told else [*told, str(other)])
