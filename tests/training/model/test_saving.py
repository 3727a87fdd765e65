import json
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from tests.training.model.test_aligngpt import close
from tests.training.model.tiny_models import (
    build_model,
    load_with_report,
    one_row,
    sample,
    text_config,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig


@pytest.mark.parametrize("vision", ["clip", "siglip", "timm"])
@pytest.mark.parametrize(
    ("text", "is_tied"),
    [("llama", True), ("llama", False), ("qwen3", True), ("gemma", True), ("phi", False)],
)
def test_a_saved_model_loads_as_it_was(vision, text, is_tied, tmp_path):
    config = text_config(text, tie_word_embeddings=is_tied)
    model = build_model(vision=vision, text_config=config)
    model.save_pretrained(tmp_path)
    loaded, report = load_with_report(tmp_path)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    inputs = one_row(sample(1, 7))
    close(loaded.eval()(**inputs).logits, model(**inputs).logits)
    head = loaded.get_output_embeddings().weight
    assert (head is loaded.get_input_embeddings().weight) == is_tied
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert ("language_model.lm_head.weight" in weights.keys()) != is_tied  # noqa: SIM118


def test_the_config_survives_the_round_trip(tmp_path):
    model = build_model(alignment_mode="local", gate_reads_answer=True, projector_type="mlp3x_gelu")
    model.save_pretrained(tmp_path)
    loaded = AlignGPTConfig.from_pretrained(tmp_path)
    fields = ("alignment_mode", "gate_reads_answer", "projector_type", "num_levels")
    assert [getattr(loaded, name) for name in fields] == ["local", True, "mlp3x_gelu", 4]
    assert loaded.vision_config.to_dict() == model.config.vision_config.to_dict()
    assert loaded.text_config.hidden_size == model.config.text_config.hidden_size
    assert loaded.placeholders == model.config.placeholders


def test_the_auto_classes_know_the_model(tmp_path):
    model = build_model()
    model.save_pretrained(tmp_path)
    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is AlignGPTForConditionalGeneration
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is AlignGPTConfig


def test_only_missing_parts_get_new_weights(tmp_path):
    model = build_model(alignment_mode="none")
    model.save_pretrained(tmp_path)
    loaded, report = load_with_report(tmp_path, alignment_mode="adaptive")
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"gate", "level_vectors"}
    assert 0 < loaded.level_vectors.weight.abs().max() < 1
    assert loaded.gate.mlp[0].weight.std() > 0
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_a_model_of_parts_has_their_weights(tmp_path):
    whole = build_model()
    parts = AlignGPTForConditionalGeneration.from_parts(
        whole.config, whole.vision_tower.backbone, whole.language_model
    )
    assert not any(tensor.is_meta for tensor in [*parts.parameters(), *parts.buffers()])
    assert parts.language_model is whole.language_model
    parts.save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    inputs = one_row(sample(1, 7))
    close(loaded.eval()(**inputs).logits, parts.eval()(**inputs).logits)


def test_weights_load_in_bfloat16(tmp_path):
    build_model().save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(**one_row(sample(1, 7))).loss.isfinite()


def test_a_saved_folder_holds_no_pickle_and_names_no_code(tmp_path):
    build_model().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("cast", ["to", "bfloat16", "from_parts"])
def test_position_frequencies_stay_exact_in_bfloat16(cast, tmp_path):
    build_model().save_pretrained(tmp_path)
    kind = AlignGPTForConditionalGeneration
    expected = kind.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    if cast == "from_parts":
        source = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
        model = kind.from_parts(
            source.config, source.vision_tower.backbone, source.language_model
        ).eval()
        model.load_state_dict(expected.state_dict())
    else:
        model = kind.from_pretrained(tmp_path).eval()
        model = model.to(torch.bfloat16) if cast == "to" else model.bfloat16()
    frequencies = model.language_model.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, expected.language_model.model.rotary_emb.inv_freq)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    inputs = one_row(sample(1, 40))
    assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
