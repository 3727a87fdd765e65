import sys

import numpy as np
import pytest

from schemas.errors import ConfigError
from scoring.signals.function import checked_values, load_function


def test_a_function_is_found_with_the_hash_of_its_source(tmp_path, monkeypatch):
    (tmp_path / "their_signal.py").write_text("def length(pairs):\n    return pairs\n")
    monkeypatch.syspath_prepend(tmp_path)
    function, sha256 = load_function("their_signal:length")
    assert function([3]) == [3]
    assert len(sha256) == 64
    sys.modules.pop("their_signal")
    (tmp_path / "their_signal.py").write_text("def length(pairs):\n    return len(pairs)\n\n")
    assert load_function("their_signal:length")[1] != sha256


@pytest.mark.parametrize("spelled", ["no_such_module:f", "json:no_such_function", "sys:path"])
def test_what_cannot_be_found_says_where_it_is_looked_for(spelled):
    with pytest.raises(ConfigError, match=spelled):
        load_function(spelled)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], "words", [[1.0, 2.0]]])
def test_what_is_not_one_finite_number_a_pair_is_refused(values):
    with pytest.raises(ConfigError, match="m:f"):
        checked_values("m:f", values, 2)
    assert checked_values("m:f", [1, 2], 2).dtype == np.float32
