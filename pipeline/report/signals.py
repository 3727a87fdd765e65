"""What the signals of a dataset's samples are like, level by level."""

import json

import numpy as np
import pyarrow.parquet as pq

from schemas.columns import SIGNAL_FIELD, check_schema, signal_fields
from schemas.manifest import SignalSummary
from schemas.records import TRAIN_SCHEMA
from schemas.storage import open_read

ROWS_AT_ONCE = 65_536


def read_signals(paths: list[str]) -> list[SignalSummary]:
    """Returns what the signals of train tables are like, in the order of their columns.

    Args:
        paths: of the tables.
    """
    if not paths:
        return []
    with open_read(paths[0]) as file:
        fields = signal_fields(pq.read_schema(file))
    found = {field.name: _Tally() for field in fields}
    for path in paths if fields else []:
        with open_read(path) as file:
            parquet = pq.ParquetFile(file)
            check_schema(parquet.schema_arrow, TRAIN_SCHEMA, path)
            names = ["alignment_level", *found]
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
                levels = np.asarray(batch["alignment_level"].fill_null(0))
                for name, tally in found.items():
                    is_known = np.asarray(batch[name].is_valid())
                    values = np.asarray(batch[name].to_numpy(zero_copy_only=False), np.float64)
                    tally.add(values[is_known], levels[is_known])
    return [
        found[field.name].summary(
            field.name,
            field.metadata[b"description"].decode(),
            json.loads(field.metadata[SIGNAL_FIELD]),
        )
        for field in fields
    ]


class _Tally:
    """Counts and sums of one signal, by level; 0 is of samples without one."""

    def __init__(self) -> None:
        self.counts = np.zeros(128, np.int64)
        self.sums = np.zeros(128, np.float64)
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, values: np.ndarray, levels: np.ndarray) -> None:
        """Takes the values of some samples."""
        if len(values):
            self.counts += np.bincount(levels, minlength=128)
            self.sums += np.bincount(levels, values, minlength=128)
            self.lowest = min(self.lowest, float(values.min()))
            self.highest = max(self.highest, float(values.max()))

    def summary(self, name: str, description: str, made: dict[str, str]) -> SignalSummary:
        """Returns what the manifest says of it."""
        count = int(self.counts.sum())
        return SignalSummary(
            name=name,
            description=description,
            made=made,
            samples=count,
            lowest=self.lowest if count else None,
            mean=float(self.sums.sum()) / count if count else None,
            highest=self.highest if count else None,
            level_means={
                str(level): float(self.sums[level] / self.counts[level])
                for level in np.flatnonzero(self.counts).tolist()
                if level
            },
        )
