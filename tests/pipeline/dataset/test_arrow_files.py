import pyarrow as pa
import pytest

from pipeline.dataset.arrow_files import read_batches, write_batches

SCHEMA = pa.schema([("place", pa.int64())])


def batches(*values):
    return [pa.record_batch([pa.array(part, pa.int64())], schema=SCHEMA) for part in values]


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_batches_come_back_all_or_some_in_the_wanted_order(tmp_path, compression):
    path = str(tmp_path / "made" / "spilled.arrow")
    write_batches(path, batches([1, 2], [3], [4, 5]), compression=compression)
    assert read_batches(path)["place"].to_pylist() == [1, 2, 3, 4, 5]
    assert read_batches(path, [2, 0])["place"].to_pylist() == [4, 5, 1, 2]


def test_no_batch_is_a_table_of_the_schema_and_a_failed_write_leaves_no_file(tmp_path):
    write_batches(str(tmp_path / "none.arrow"), [], SCHEMA)
    assert read_batches(str(tmp_path / "none.arrow")).schema == SCHEMA

    def breaking():
        yield from batches([1])
        raise KeyError("the second")

    with pytest.raises(KeyError):
        write_batches(str(tmp_path / "half.arrow"), breaking())
    assert not (tmp_path / "half.arrow").exists()
