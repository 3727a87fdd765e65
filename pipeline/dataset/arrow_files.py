"""Arrow files that a stage leaves for itself while it works, read batch by batch."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from schemas.storage import commit_file, open_read


def write_batches(
    path: str,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema | None = None,
    compression: str | None = None,
) -> int:
    """Commits record batches of one schema as an Arrow file; returns its length in bytes.

    Args:
        schema: of the batches; by default that of the first, which must then be there.
        compression: `lz4`, where the columns shrink by it.
    """
    rest = iter(batches)
    first = [] if schema is not None else [next(rest)]
    schema = schema or first[0].schema
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with commit_file(path) as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for batch in (*first, *rest):
            writer.write_batch(batch)
        writer.close()
        return file.tell()


def read_batches(path: str, numbers: Sequence[int] | None = None) -> pa.Table:
    """Returns some batches of an Arrow file as a table, all of them by default."""
    with open_read(path) as file, pa.ipc.open_file(file) as reader:
        wanted = range(reader.num_record_batches) if numbers is None else numbers
        batches = [reader.get_batch(number) for number in wanted]
        return pa.Table.from_batches(batches, schema=reader.schema)
