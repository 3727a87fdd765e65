from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from schemas.errors import ConfigError
from tests.training.model.tiny_models import text_config
from training.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.model.packing.check import packing_fault
from training.train import train

SIZES = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
ROTARY = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
MIXED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip


def leaky_config(kind: str) -> Any:
    if kind == "opt":
        return transformers.OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16)
    if kind == "falcon":
        return transformers.FalconConfig(**SIZES)
    if kind == "bloom":
        return transformers.BloomConfig(vocab_size=96, n_layer=2, n_head=2, hidden_size=16)
    if kind == "lfm2":
        kinds = ["full_attention", "conv"]
        return transformers.Lfm2Config(**{**ROTARY, "layer_types": kinds})
    kinds = ["full_attention", "linear_attention"]
    return transformers.Qwen3NextConfig(**{**ROTARY, **MIXED, **LINEAR, "layer_types": kinds})


@pytest.mark.parametrize("kind", ["opt", "falcon", "bloom", "lfm2", "qwen3_next"])
def test_a_model_whose_packed_samples_see_each_other_is_found(kind: str) -> None:
    fault = packing_fault(leaky_config(kind))
    assert fault is not None and "logits differ by" in fault


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma", "gemma2"])
def test_a_model_that_keeps_packed_samples_apart_is_let_pass(kind: str) -> None:
    assert packing_fault(text_config(kind)) is None


def test_the_check_changes_no_random_number_and_no_config() -> None:
    config = text_config("gemma2")
    before = config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    packing_fault(config)
    assert torch.equal(torch.rand(2), expected)
    assert config.to_dict() == before


def test_a_model_without_keys_and_values_is_refused() -> None:
    mamba = transformers.MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(ConfigError, match=r"mamba cannot be trained here.*past_key_values"):
        packing_fault(mamba)


def test_a_leaking_model_trains_with_one_sample_in_a_sequence_only(
    tiny_parts: dict[str, str], tiny_tokenizer: Any, caption_dataset: str, tmp_path: Any
) -> None:
    config = leaky_config("opt")
    config.vocab_size = len(tiny_tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    tiny_tokenizer.save_pretrained(tmp_path / "opt")
    model = ModelConfig(**{**tiny_parts, "language_model": str(tmp_path / "opt")}, num_levels=4)

    def run(window: int) -> bool:
        data = DataConfig(
            tokens_per_sequence=64, sequences_per_step=2, workers=0, packing_window=window
        )
        parallel = ParallelConfig(precision="fp32", activation_checkpointing=False)
        whole = TrainConfig(model=model, data=data, parallel=parallel, max_steps=1)
        return train(whole, [caption_dataset], str(tmp_path / "run"))

    with pytest.raises(ConfigError, match=r"\(opt\) lets the samples .* data\.packing_window 1"):
        run(64)
    assert run(1)
