"""What users of transformers and peft do with any model, done with ours."""

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.test_aligngpt import close
from tests.training.model.tiny_models import (
    ALIGN,
    IMAGE,
    VOCAB_SIZE,
    build_model,
    load_with_report,
    one_row,
    sample,
    text_config,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.outputs import AlignGPTOutput


def says(model, inputs):
    prompt = {name: value for name, value in inputs.items() if name != "labels"}
    return model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, -4:]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE + 14, VOCAB_SIZE - 16])
def test_a_model_with_resized_embeddings_answers_saves_and_loads(is_tied, vocab_size, tmp_path):
    model = build_model(text_config=text_config(tie_word_embeddings=is_tied))
    inputs = one_row(sample(1, 9))
    words = inputs["input_ids"] % (VOCAB_SIZE - 16)
    is_placeholder = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, ALIGN]))
    inputs["input_ids"] = torch.where(is_placeholder, inputs["input_ids"], words)
    inputs["labels"] = torch.where(inputs["labels"] < 0, -100, words)
    before = model(**inputs).logits
    embedding = model.resize_token_embeddings(vocab_size, mean_resizing=False)
    head = model.get_output_embeddings()
    assert (embedding.weight is head.weight) == is_tied
    assert len(embedding.weight) == len(head.weight) == model.config.text_config.vocab_size
    after = model(**inputs)
    kept = min(vocab_size, VOCAB_SIZE)
    close(after.logits[..., :kept], before[..., :kept])
    assert after.logits.shape[-1] == vocab_size

    model.save_pretrained(tmp_path)
    loaded, report = load_with_report(tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.text_config.vocab_size == vocab_size
    close(loaded.eval()(**inputs).logits, after.logits)
    said = says(model, inputs)
    assert torch.equal(says(loaded, inputs), said)
    assert not torch.isin(said, torch.tensor([IMAGE, ALIGN])).any()


def test_embeddings_of_words_are_read_as_the_words_are():
    model = build_model()
    words = torch.randint(3, VOCAB_SIZE, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(words)
    mask[0, :2] = 0
    embeddings = model.get_input_embeddings()(words)
    by_id = model(words, attention_mask=mask, labels=words)
    by_embedding = model(inputs_embeds=embeddings, attention_mask=mask, labels=words)
    close(by_embedding.logits, by_id.logits)
    close(by_embedding.loss, by_id.loss)
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    said = model.generate(words, **settings)[:, 7:]
    assert torch.equal(model.generate(inputs_embeds=embeddings, **settings), said)


def test_embeddings_go_with_neither_ids_nor_images():
    model, inputs = build_model(), one_row(sample(1, 9))
    embeddings = model.get_input_embeddings()(inputs["input_ids"].clamp(max=VOCAB_SIZE - 1))
    alone = {"inputs_embeds": embeddings}
    for refused in (
        {},
        {**alone, "input_ids": inputs["input_ids"]},
        {**alone, "pixel_values": inputs["pixel_values"]},
        {**alone, "alignment_level": torch.tensor([1])},
    ):
        with pytest.raises(ConfigError, match="or inputs_embeds alone"):
            model(**refused)


def test_without_return_dict_the_output_is_a_tuple():
    model, inputs = build_model(), one_row(sample(1, 9))
    output = model(**inputs)
    assert isinstance(output, AlignGPTOutput)
    loss, logits, *_ = model(**inputs, return_dict=False)
    close(loss, output.loss)
    close(logits, output.logits)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_pefts_own_call_trains_saves_and_loads_an_adapter(task_type, tmp_path):
    peft = pytest.importorskip("peft")
    build_model().save_pretrained(tmp_path / "base")
    inputs = one_row(sample(1, 9))

    def base():
        return AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "base").eval()

    settings = peft.LoraConfig(
        task_type=task_type, r=2, target_modules=r"language_model\..*\.(q|v)_proj"
    )
    model = peft.get_peft_model(base(), settings)
    plain = model(**inputs)
    close(plain.logits, base()(**inputs).logits)
    plain.loss.backward()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter -= 30 * parameter.grad
    learnt = model(**inputs)
    assert learnt.loss < plain.loss
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    close(loaded(**inputs).logits, learnt.logits)
    assert torch.equal(says(loaded, inputs), says(model, inputs))


class Packed(torch.nn.Linear):
    """A layer whose weight is stored as bytes, as those of 4 and 8 bits are."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.scale = layer.weight.abs().max() / 127
        codes = (layer.weight / self.scale + 128).round().to(torch.uint8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = (self.weight.to(inputs.dtype) - 128) * self.scale
        return torch.nn.functional.linear(inputs, weight, self.bias)


def test_packed_weights_say_nearly_what_the_others_do():
    model, inputs = build_model(), one_row(sample(1, 9))
    with torch.no_grad():
        expected = model(**inputs).logits
        for name, layer in list(model.named_modules()):
            if type(layer) is torch.nn.Linear and not name.startswith(("gate", "vision_tower")):
                model.set_submodule(name, Packed(layer))
        found = model(**inputs).logits
    assert model.projector.layers[0].weight.dtype == torch.uint8
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95
