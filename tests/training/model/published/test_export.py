import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    IMAGE_SIZE,
    build_model,
    build_tokenizer,
    text_config,
)
from training.model.config import ALIGNMENT_MODES
from training.model.processor import AlignGPTProcessor
from training.model.published.config import text_config_of
from training.model.published.weights import load_published, save_published


def export(tmp_path, vision="clip", text="llama", is_tied=False, rope=None, **settings):
    """Returns a model and the folder that it was exported to."""
    tokenizer = build_tokenizer(True)
    words = text_config(text, vocab_size=len(tokenizer), tie_word_embeddings=is_tied)
    if rope is not None:
        words.rope_parameters = rope
    model = build_model(
        vision=vision, text_config=words,
        image_token_id=len(tokenizer), align_token_id=len(tokenizer) + 1, **settings,
    )  # fmt: skip
    processor = AlignGPTProcessor(
        image_processor=transformers.CLIPImageProcessor(), tokenizer=tokenizer, num_image_tokens=16
    )
    tower = tmp_path / f"{vision}_tower"
    if vision != "timm":
        model.vision_tower.backbone.save_pretrained(tower)
        transformers.CLIPImageProcessor().save_pretrained(tower)
    save_published(model, processor, tmp_path / "out", vision_tower=str(tower))
    return model, tmp_path / "out"


@pytest.mark.parametrize("mode", ALIGNMENT_MODES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_export_and_import_give_the_same_model(mode, is_tied, tmp_path):
    model, folder = export(tmp_path, alignment_mode=mode, is_tied=is_tied)
    names = load_file(folder / "model.safetensors").keys()
    prefix = "model." if mode == "none" else ""
    assert {f"{prefix}mm_projector.0.weight", "model.embed_tokens.weight"} <= names
    assert f"{prefix}vision_tower.vision_tower.vision_model.embeddings.class_embedding" in names
    loaded, _ = load_published(folder)
    assert loaded.config.alignment_mode == mode
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert loaded.lm_head_is_tied() if hasattr(loaded, "lm_head_is_tied") else True


@pytest.mark.parametrize("levels", [4, 8])
@pytest.mark.parametrize("reads_answer", [True, False])
@pytest.mark.parametrize(
    ("vision", "scales"), [("clip", None), ("siglip", [IMAGE_SIZE, 2 * IMAGE_SIZE])]
)
def test_what_an_exported_model_is_survives_the_import(
    levels, reads_answer, vision, scales, tmp_path
):
    model, folder = export(
        tmp_path, vision, num_levels=levels, gate_reads_answer=reads_answer, image_scales=scales,
        align_after_first_token=not reads_answer,
    )  # fmt: skip
    settings = json.loads((folder / "config.json").read_text())
    assert settings["n_indicators"] == levels
    assert settings["use_s2"] == (scales is not None)
    assert settings["s2_scales"] == ("16" if scales is None else "16,32")
    assert settings["mm_hidden_size"] == 8 * len(scales or [0])
    loaded, processor = load_published(folder)
    fields = (
        "num_levels", "gate_reads_answer", "image_scales", "image_size", "num_image_tokens",
        "align_after_first_token",
        "vision_feature_layer", "vision_feature_select", "projector_type", "gate_width",
    )  # fmt: skip
    for field in fields:
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    assert processor.image_processor.image_size == (16 if scales is None else 32)


def test_a_config_of_the_family_code_is_read(tmp_path):
    _, folder = export(tmp_path, "siglip", num_levels=4, image_scales=[16, 32])
    settings = json.loads((folder / "config.json").read_text())
    theirs = {name: v for name, v in settings.items() if not name.startswith("aligngpt_")}
    (folder / "config.json").write_text(json.dumps({**theirs, "s2_scales": "32,16"}))
    loaded, _ = load_published(folder)
    assert (loaded.config.alignment_mode, loaded.config.gate_reads_answer) == ("adaptive", True)
    assert loaded.config.align_after_first_token
    assert (loaded.config.num_levels, loaded.config.image_scales) == (4, [16, 32])


@pytest.mark.parametrize(
    ("vision", "settings", "message"),
    [
        ("timm", {}, "loads CLIP and SigLIP towers"),
        ("clip", {"image_scales": [32, 16]}, "must rise from the tower's own 16"),
        ("clip", {"image_scales": [32]}, "must rise from the tower's own 16"),
    ],
)
def test_what_the_published_code_cannot_load_is_not_exported(vision, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, vision, **settings)
    assert not (tmp_path / "out").exists()


def test_a_tower_is_not_exported_under_the_name_of_another_kind(tmp_path):
    model, processor = build_model(vision="siglip"), None
    with pytest.raises(ConfigError, match="knows SigLIP by the name alone"):
        save_published(model, processor, tmp_path / "out", vision_tower="openai/clip")


@pytest.mark.parametrize(
    ("text", "rope", "old"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        (
            "llama",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        ),
    ],
)
def test_rotary_embeddings_are_written_in_the_old_form_too(text, rope, old, tmp_path):
    model, folder = export(tmp_path, text=text, rope=rope)
    settings = json.loads((folder / "config.json").read_text())
    expected = {"rope_scaling": None, **old}
    assert {name: settings[name] for name in expected} == expected
    assert text_config_of(settings).rope_parameters == model.config.text_config.rope_parameters
    del settings["rope_parameters"]
    read = text_config_of(settings).rope_parameters
    assert {name: read[name] for name in rope} == rope
