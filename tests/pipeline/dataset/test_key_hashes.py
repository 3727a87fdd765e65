import pyarrow as pa
import pytest

from pipeline.dataset.key_hashes import key_hashes
from schemas.errors import DatasetError


def test_a_key_that_is_no_hash_is_refused():
    with pytest.raises(DatasetError, match="32"):
        key_hashes(pa.array(["abc"]))
    with pytest.raises(DatasetError, match="hexadecimal"):
        key_hashes(pa.array(["xyz" + "0" * 29]))


def test_the_number_of_a_key_is_that_of_its_first_sixteen_digits():
    keys = ["0123456789abcdef" + "0" * 16, "f" * 32, "8000000000000001" + "f" * 16]
    assert key_hashes(pa.array(keys)).tolist() == [int(key[:16], 16) for key in keys]
    assert key_hashes(pa.array([], pa.string())).tolist() == []
