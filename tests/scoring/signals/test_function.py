import sys

import numpy as np
import pytest

from schemas.errors import ConfigError
from scoring.control import exchange_captions
from scoring.signals.function import (
    checked_values,
    exchanged_values,
    has_control,
    load_function,
)
from scoring.signals.pairs import ScoredPairs


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


def test_a_function_gets_pictures_with_the_captions_of_others():
    image = np.eye(5, dtype=np.float32)
    keys = [str(row) for row in range(5)]
    pairs = ScoredPairs(keys, [f"caption {key}" for key in keys], np.ones(5), image, image)

    def whose(some):
        told = zip(some.keys, some.captions, strict=True)
        rows = [10 * int(key) + int(text[-1]) for key, text in told]
        looked = some.text_embedding.argmax(axis=1) + 10 * some.image_embedding.argmax(axis=1)
        assert looked.tolist() == rows
        return np.array(rows)

    exchange = exchange_captions(image, image, np.ones(5, np.int64))
    found = exchanged_values("m:whose", whose, pairs, exchange)
    assert found[0].tolist()[:4] == [1, 2, 3, 4]
    assert np.isnan(found[:, 4:]).all()  # there are four others


def test_a_function_may_say_that_it_cannot_be_asked_of_exchanged_pairs(tmp_path, monkeypatch):
    text = "def plain(pairs):\n    return pairs\n\n\ndef bound(pairs):\n    return pairs\n\n\n"
    (tmp_path / "their_bound.py").write_text(text + "bound.has_control = False\n")
    monkeypatch.syspath_prepend(tmp_path)
    functions = [load_function(f"their_bound:{name}")[0] for name in ("plain", "bound")]
    assert [has_control(function) for function in functions] == [True, False]
