import dataclasses

import pytest
import torch

from schemas.errors import ConfigError
from scoring.clip.checkpoints import resolve_checkpoint
from scoring.clip.loading import fast_memory_format, input_dtype, load_model, load_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_model_is_loaded_ready_to_run_in_its_arithmetic(tiny_clip, precision, dtype):
    config = tiny_clip.score_config(precision=precision)
    checkpoint = resolve_checkpoint(config)
    model, arithmetic = load_model(checkpoint, config, CPU)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    stored = torch.load(tiny_clip.weights)["text_projection"]
    torch.testing.assert_close(model.text_projection.float(), stored, atol=1e-2, rtol=1e-2)
    assert input_dtype(arithmetic) == dtype
    assert load_tokenizer(checkpoint, config)(["a cat"]).shape == (1, 16)


def test_weights_of_another_model_are_refused_by_name(tiny_clip, tmp_path):
    config = tiny_clip.score_config()
    torch.save({"text_projection": torch.zeros(2, 2)}, tmp_path / "other.pt")
    checkpoint = dataclasses.replace(resolve_checkpoint(config), weights=tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"cannot be loaded from .*other\.pt"):
        load_model(checkpoint, config, CPU)


def test_pictures_lie_by_pixel_on_a_cpu():
    assert fast_memory_format(CPU) is torch.channels_last
    assert fast_memory_format(torch.device("cuda")) is torch.contiguous_format
