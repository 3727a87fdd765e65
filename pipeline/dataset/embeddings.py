"""The embeddings of scored pairs, as arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import DatasetError


def embedding_array(table: pa.Table, name: str, path: str) -> NDArray[np.float32]:
    """Returns a column of embeddings, (n, d).

    Args:
        path: how a message calls the file.

    Raises:
        DatasetError: if there are none, or not all are as wide.
    """
    column = table[name].combine_chunks()
    widths = np.unique(np.asarray(pc.fill_null(pc.list_value_length(column), 0)))
    if len(table) and (len(widths) != 1 or not widths[0]):
        raise DatasetError(
            f"{path}: {name} is not of one width: score it with score.keep_embeddings "
            "(--redo score)"
        )
    values = np.asarray(column.flatten().to_numpy(), np.float32)
    return values.reshape(len(table), int(widths[0]) if len(table) else 0)
