import numpy as np
import pytest

from pipeline.score.exchanges import exchanged_column, exchanged_cosines, is_exchangeable
from scoring.control import EXCHANGES, exchange_captions
from scoring.signals.names import parse_signals


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 6))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_another_model_is_asked_of_the_same_exchanged_pairs():
    exchange = exchange_captions(unit(12, 0), unit(12, 1), np.ones(12, np.int64))
    image, text = unit(20, 2), unit(20, 3)  # of all rows, of which twelve are exchanged
    found = exchanged_cosines(image, text, exchange)
    assert found[5, 2] == pytest.approx(image[5] @ text[exchange.partner[5, 2]], abs=1e-6)
    few = exchange_captions(unit(2, 0), unit(2, 1), np.ones(2, np.int64))
    assert np.isnan(exchanged_cosines(image, text, few)[:, 1:]).all()


def test_the_column_has_a_list_for_each_pair_that_was_exchanged():
    values = np.arange(2 * EXCHANGES, dtype=np.float32).reshape(2, EXCHANGES)
    column = exchanged_column(values, 5)
    assert (len(column), column.null_count) == (5, 3)
    assert column[1].as_py() == values[1].tolist()
    assert exchanged_column(None, 3).null_count == 3
    assert len(exchanged_column(values, 2)) == 2


def test_signals_are_exchanged_where_no_model_has_to_run_again():
    spelled = ("negclip", "head:a.safetensors", "clip:ViT-B-32/openai", "itm:m", "json:dumps")
    found = {spec.kind: is_exchangeable(spec) for spec in parse_signals(spelled)}
    assert found == {"negclip": True, "head": False, "clip": True, "itm": False, "function": True}
