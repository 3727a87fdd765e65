import copy
from typing import Any

import pytest
import torch
import transformers

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    build_model,
    one_row,
    packed_row,
    sample,
    text_config,
)
from training.model.packing.attention import BY_SAMPLE, attention_fault
from training.parts import attention_to_load


def packed_rows():
    """Two packed rows of different samples, and the samples."""
    rows = [[sample(1, 9), sample(2, 5, num_images=0)], [sample(3, 4), sample(4, 10, num_images=0)]]
    packed = [packed_row(items, padding=5) for items in rows]
    assert len({row["input_ids"].shape for row in packed}) == 1
    return {name: torch.cat([row[name] for row in packed]) for name in packed[0]}, rows


def test_packed_rows_take_no_attention_mask():
    batch, _ = packed_rows()
    mask = torch.ones_like(batch["input_ids"])
    with pytest.raises(ConfigError, match="take no attention_mask"):
        build_model()(**batch, attention_mask=mask)


def test_attention_is_sdpa_until_flex_attention_was_seen_to_work_unless_named():
    assert attention_to_load("eager") == "eager"
    assert attention_to_load("auto") == "sdpa"


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flex_attention_of_packed_rows_is_that_of_sdpa(family):
    config = build_model(family).config.text_config
    where = {"dtype": torch.float32, "device": torch.device("cpu"), "rows": 2, "width": 200}
    assert attention_fault("flex_attention", config, **where) is None


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
@pytest.mark.slow
def test_a_model_that_flex_attention_cannot_train_is_told_apart():
    config = copy.deepcopy(build_model().config.text_config)
    config.attention_dropout = 0.1
    where = {"dtype": torch.float32, "device": torch.device("cpu"), "rows": 1, "width": 64}
    assert "dropout" in attention_fault("flex_attention", config, **where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma"])
def test_attention_by_sample_has_the_results_and_gradients_of_sdpa(family, dtype):
    config = build_model(family).config.text_config
    where = {"dtype": dtype, "device": torch.device("cpu"), "rows": 2, "width": 200}
    assert attention_fault(BY_SAMPLE, config, **where) is None


def test_a_model_that_cannot_attend_by_sample_is_told_apart():
    config = build_model("gemma2").config.text_config
    where = {"dtype": torch.float32, "device": torch.device("cpu"), "rows": 2, "width": 200}
    assert "scaled_dot_product" in attention_fault(BY_SAMPLE, config, **where)


def test_a_model_that_does_not_tell_of_its_sliding_window_is_told_apart():
    config = transformers.Qwen2MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, num_experts=2, num_experts_per_tok=1,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
        use_sliding_window=True, sliding_window=120, max_window_layers=1,
    )  # fmt: skip
    where = {"dtype": torch.float32, "device": torch.device("cpu"), "rows": 1, "width": 200}
    assert "differ" in attention_fault(BY_SAMPLE, config, **where)


@pytest.mark.parametrize("window", [2, 4, 8, 100])
def test_attention_by_sample_looks_back_as_far_as_a_sliding_window(window):
    batch, _ = packed_rows()
    del batch["labels"]
    found = []
    for name in ("sdpa", BY_SAMPLE):
        model = build_model(text_config=text_config("mistral", sliding_window=window))
        model.language_model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(model(**batch).logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_attention_by_sample_computes_no_pair_of_two_samples(monkeypatch):
    seen = []
    call = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, *others, **named):
        seen.append((query.shape[2], key.shape[2], named.get("attn_mask")))
        return call(query, key, *others, **named)

    batch, rows = packed_rows()
    model = build_model()
    model.language_model.set_attn_implementation(BY_SAMPLE)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    model(**batch)
    lengths = [n for row in rows for n in [*(len(item["input_ids"]) for item in row), 5]]
    of_samples = [one for one in seen if one[2] is None and one[0] == one[1] and one[0] in lengths]
    assert len(of_samples) >= len(lengths) * model.config.text_config.num_hidden_layers
    assert max(one[1] for one in seen) < batch["input_ids"].shape[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", [300, 512])
def test_flex_attention_on_a_gpu_has_the_results_and_gradients_of_sdpa(width):
    config = copy.deepcopy(build_model().config.text_config)
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads = 512, 4, 2
    config.head_dim = 128
    where = {"dtype": torch.bfloat16, "device": torch.device("cuda"), "rows": 2, "width": width}
    assert attention_fault("flex_attention", config, **where) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("attention", ["flex_attention", BY_SAMPLE, "flash_attention_2"])
def test_packed_rows_on_a_gpu_have_the_loss_and_gradient_of_sdpa(attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    batch, _ = packed_rows()
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    found = []
    for name in ("sdpa", attention):
        # On a GPU, flex_attention takes no heads narrower than 16.
        model: Any = build_model(text_config=text_config(head_dim=16))
        model = model.cuda().bfloat16().train()
        model.language_model.set_attn_implementation(name)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), model.projector.layers[0].weight.grad))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


def test_rows_packed_two_and_two_have_the_logits_of_samples_alone():
    batch, rows = packed_rows()
    del batch["labels"]
    model = build_model()
    with torch.no_grad():
        logits = model(**batch).logits
        for r, row in enumerate(rows):
            start = 0
            for item in row:
                inputs = one_row(item)
                del inputs["labels"]
                end = start + len(item["input_ids"])
                alone = model(**inputs).logits[0]
                torch.testing.assert_close(logits[r, start:end], alone, rtol=1e-4, atol=1e-4)
                start = end
