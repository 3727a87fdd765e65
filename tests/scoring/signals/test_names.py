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


def test_models_are_called_by_the_last_part_of_their_name():
    spelled = (
        "clip:ViT-B-32/laion2b_s34b_b79k",
        "clip:local-dir:/models/My CLIP/",
        "clip:hf-hub:apple/DFN5B-CLIP",
        "clip:/a/b.json//w/x.pt",
        "itm:llava-hf/llava-1.5-7b-hf",
    )
    found = {spec.name: spec for spec in parse_signals(spelled)}
    models = {name: spec.clip_model for name, spec in found.items() if spec.kind == "clip"}
    assert models == {
        "clip_vit_b_32": ("ViT-B-32", "laion2b_s34b_b79k"),
        "clip_my_clip": ("local-dir:/models/My CLIP/", ""),
        "clip_dfn5b_clip": ("hf-hub:apple/DFN5B-CLIP", ""),
        "clip_b": ("/a/b.json", "/w/x.pt"),
    }
    assert found["itm_llava_1_5_7b_hf"].argument == "llava-hf/llava-1.5-7b-hf"
    assert all(spec.looks_at_pictures for spec in found.values())


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (("blip",), "'blip' is no signal"),
        (("head:",), "is no signal"),
        (("clip:ViT-B-32",), "is no signal"),
        (("itm:",), "is no signal"),
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
    assert ScoreConfig(signals=("itm:x",), keep_embeddings=False).signals == ("itm:x",)
