import pytest

from schemas.errors import ConfigError
from scoring.config import ScoreConfig
from scoring.signals.names import SignalSpec, parse_signals


def test_signals_become_columns_in_the_order_of_their_names():
    found = parse_signals(
        ("pkg.mod:Length", "head:/models/NSFW-head.v2.safetensors", "ours=negclip")
    )
    assert found == (
        SignalSpec("function", "pkg.mod:Length", "length"),
        SignalSpec("head", "/models/NSFW-head.v2.safetensors", "nsfw_head"),
        SignalSpec("negclip", "", "ours"),
    )


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (("blip",), "'blip' is no signal"),
        (("head:",), "is no signal"),
        (("negclip", "negclip=head:x.safetensors"), "two signals are called 'negclip'"),
        (("caption=negclip",), "'caption' is a column of every dataset"),
        (("head:/x/9.safetensors",), "'9' is no name"),
    ],
)
def test_what_is_no_signal_stops_the_configuration(signals, message):
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(signals=signals)


def test_signals_need_stored_embeddings():
    with pytest.raises(ConfigError, match=r"score\.keep_embeddings is False"):
        ScoreConfig(signals=("negclip",), keep_embeddings=False)
