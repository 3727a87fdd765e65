import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_model, one_row, sample
from training.model.lora import LORA_RULE, add_lora, has_lora, merge_lora
from training.model.trainable import set_trainable


def with_adapters(text="llama"):
    model = build_model(text=text)
    add_lora(model, rank=3, alpha=6.0, dropout=0.0)
    set_trainable(model, ["projector", LORA_RULE])
    return model


def stir(model):
    """Gives every adapter weights as if it had learnt."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("text", ["llama", "phi", "gpt2"])
def test_a_model_with_fresh_adapters_is_the_model_without(text):
    inputs = one_row(sample(1, 9))
    with torch.no_grad():
        plain = build_model(text=text)(**inputs).logits
        torch.testing.assert_close(with_adapters(text)(**inputs).logits, plain)


@pytest.mark.parametrize("text", ["llama", "phi", "gpt2"])
def test_merged_weights_make_a_plain_model_that_answers_the_same(text):
    model, plain = with_adapters(text), build_model(text=text)
    stir(model)
    inputs = one_row(sample(1, 9))
    with torch.no_grad():
        adapted = model(**inputs).logits
        assert not torch.allclose(adapted, plain(**inputs).logits, atol=1e-3)
        plain.load_state_dict(merge_lora(model, dict(model.state_dict())))
        torch.testing.assert_close(plain(**inputs).logits, adapted, rtol=1e-4, atol=1e-4)


def test_only_adapters_of_the_language_model_learn():
    model = with_adapters()
    assert has_lora(model) and not has_lora(build_model())
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    of_language = [name for name in learning if name.startswith("language_model.")]
    layers = model.config.text_config.num_hidden_layers
    assert len(of_language) == layers * 7 * 2
    assert all(".lora_" in name for name in of_language)
    model.train()(**one_row(sample(1, 9))).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in learning)


def test_a_language_model_without_linear_layers_is_refused():
    model = build_model()
    model.language_model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="has none: set lora"):
        add_lora(model, rank=2, alpha=1.0, dropout=0.0)
