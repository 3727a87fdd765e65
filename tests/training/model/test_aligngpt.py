import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    ALIGN,
    IMAGE,
    PATCHES,
    VOCAB_SIZE,
    build_model,
    one_row,
    packed_row,
    padded_rows,
    sample,
)
from training.model.packing.attention import BY_SAMPLE

TEXT_MODELS = ("llama", "qwen2", "qwen3", "mistral", "phi", "gemma", "gemma2")
MODES = ("adaptive", "local", "global", "average", "none")


def close(left, right):
    torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


def mixed_samples():
    return [sample(1, 9), sample(2, 6, num_images=0), sample(3, 14, num_images=2), sample(4, 4)]


def reference_embeddings(model, item, coefficients):
    """The sequence by the paper's words: BOS, the vector, the image, the text."""
    table = model.get_input_embeddings().weight
    features = model.projector(model.vision_tower(item["pixel_values"]))[0]
    vector = sum(c * h for c, h in zip(coefficients, model.level_vectors.weight, strict=True))
    words = item["input_ids"][2 + PATCHES :]
    return torch.cat([table[[1]], vector[None], features, table[words]])


def gate_weights_by_hand(model, item, read):
    table = model.get_input_embeddings().weight
    features = model.projector(model.vision_tower(item["pixel_values"]))[0]
    text = torch.stack([table[token] for token in read]).mean(dim=0)
    relevance = torch.stack([feature @ text for feature in features])
    return model.gate.mlp(relevance).softmax(dim=-1)


def test_stage_1_inserts_the_vector_of_the_pairs_own_level_after_bos():
    model, item = build_model(), sample(1, 6)
    embedded = model.embed(
        **dict.fromkeys(("attention_mask", "sample_index", "prompt_mask")),
        **one_row(item),
        alignment_level=torch.tensor([3]),
    )
    expected = reference_embeddings(model, item, [0, 0, 1, 0])
    close(embedded.embeddings[0], expected)


@pytest.mark.parametrize("mode", ["adaptive", "local", "global", "average"])
def test_stage_2_inserts_the_mix_of_the_mode(mode):
    model, item = build_model(alignment_mode=mode), sample(1, 6)
    embedded = model.embed(
        **dict.fromkeys(("attention_mask", "sample_index", "prompt_mask", "alignment_level")),
        **one_row(item),
    )
    thirds, gated = [1 / 3] * 3, None
    if mode in ("adaptive", "local"):
        gated = gate_weights_by_hand(model, item, item["input_ids"][2 + PATCHES : -3]).tolist()
    coefficients = {
        "adaptive": [*(gated or []), 1], "local": [*(gated or []), 0],
        "global": [0, 0, 0, 1], "average": [*thirds, 1],
    }[mode]  # fmt: skip
    close(embedded.embeddings[0], reference_embeddings(model, item, coefficients))


def test_mode_none_has_no_vector_and_no_module_for_one():
    model = build_model(alignment_mode="none")
    assert not any(name.startswith(("gate", "level")) for name, _ in model.named_parameters())
    item = sample(1, 6)
    item = {
        **item,
        "input_ids": [t for t in item["input_ids"] if t != ALIGN],
        "labels": item["labels"][1:],
    }
    assert model(**one_row(item)).logits.shape == (1, 1 + PATCHES + 6, VOCAB_SIZE)


def test_the_gate_reads_the_prompt_alone_unless_told_to_read_the_answer():
    item = sample(1, 8)
    words = item["input_ids"][2 + PATCHES :]
    for reads_answer in (False, True):
        model = build_model(gate_reads_answer=reads_answer)
        read = words if reads_answer else words[:-3]
        weights = model(**one_row(item), output_gate_weights=True).gate_weights
        close(weights[0], gate_weights_by_hand(model, item, read))


def test_a_given_prompt_mask_is_what_the_gate_reads():
    model, item = build_model(), sample(1, 8)
    mask = torch.zeros(1, len(item["input_ids"]), dtype=torch.bool)
    mask[0, 19:21] = True
    weights = model(**one_row(item), prompt_mask=mask, output_gate_weights=True).gate_weights
    close(weights[0], gate_weights_by_hand(model, item, item["input_ids"][19:21]))


def test_several_images_share_one_vector_of_their_mean_weights():
    model, item = build_model(), sample(1, 8, num_images=2)
    inputs = one_row(item)
    both = model(**inputs, output_gate_weights=True).gate_weights
    single = [
        gate_weights_by_hand(
            model, {"pixel_values": image[None]}, item["input_ids"][2 + 2 * PATCHES : -3]
        )
        for image in item["pixel_values"]
    ]
    assert both.shape == (1, 3)
    close(both[0], (single[0] + single[1]) / 2)


@pytest.mark.parametrize(
    ("text", "attention"),
    [
        *((text, "eager") for text in TEXT_MODELS),
        *((text, "sdpa") for text in TEXT_MODELS[:-1]),
        *((text, BY_SAMPLE) for text in TEXT_MODELS[:-1]),
    ],
)
def test_packed_samples_have_the_logits_they_have_alone(text, attention):
    model, items = build_model(text), mixed_samples()
    model.language_model.set_attn_implementation(attention)
    packed = model(**packed_row(items)).logits[0]
    start = 0
    for item in items:
        end = start + len(item["input_ids"])
        close(packed[start:end], model(**one_row(item)).logits[0])
        start = end


@pytest.mark.parametrize("text", TEXT_MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_never_change_a_samples_logits(text, side):
    model, items = build_model(text), mixed_samples()
    logits = model(**padded_rows(items, side)).logits
    for row, item in zip(logits, items, strict=True):
        length = len(item["input_ids"])
        own = row[:length] if side == "right" else row[-length:]
        close(own, model(**one_row(item)).logits[0])


@pytest.mark.parametrize("mode", MODES)
def test_packing_changes_neither_loss_nor_gradient(mode):
    items = mixed_samples()
    if mode == "none":
        for item in items:
            place = item["input_ids"].index(ALIGN) if ALIGN in item["input_ids"] else None
            if place is not None:
                del item["input_ids"][place], item["labels"][place]
    model = build_model(alignment_mode=mode).train()
    results = []
    for inputs in (packed_row(items), padded_rows(items)):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        results.append(
            (loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
        )
    close(results[0][0], results[1][0])
    assert len(results[0][1]) == len(results[1][1]) > 10
    for packed, padded in zip(results[0][1], results[1][1], strict=True):
        close(packed, padded)


def test_loss_is_the_mean_over_targets_or_their_sum_over_a_given_number():
    model, items = build_model(), [sample(1, 9), sample(2, 7, num_targets=5)]
    inputs = padded_rows(items)
    logits = model(**inputs).logits.log_softmax(dim=-1)
    picked = [
        logits[row, place - 1, item["labels"][place]]
        for row, item in enumerate(items)
        for place in range(len(item["labels"]))
        if item["labels"][place] >= 0
    ]
    assert len(picked) == 8
    close(model(**inputs).loss, -torch.stack(picked).mean())
    close(model(**inputs, num_items_in_batch=32).loss, -torch.stack(picked).sum() / 32)
    model.train()
    trained = model(**inputs)
    close(trained.loss, -torch.stack(picked).mean())
    assert trained.logits is None


def test_the_first_token_of_a_packed_sample_is_predicted_by_none():
    model, items = build_model(), [sample(1, 9, num_images=0), sample(2, 6, num_images=0)]
    items[1]["labels"][0] = items[1]["input_ids"][0]
    close(model(**packed_row(items)).loss, model(**padded_rows(items)).loss)


def test_levels_of_a_packed_row_are_taken_in_the_order_of_their_samples():
    model, items = build_model(), [sample(1, 5), sample(2, 6, num_images=0), sample(3, 7)]
    packed = model(**packed_row(items), alignment_level=torch.tensor([2, 4])).logits[0]
    alone = model(**one_row(items[2]), alignment_level=torch.tensor([4])).logits[0]
    start = len(items[0]["input_ids"]) + len(items[1]["input_ids"])
    close(packed[start : start + len(alone)], alone)


@pytest.mark.parametrize("levels", [None, torch.tensor([], dtype=torch.long)])
def test_a_batch_without_images_runs_the_same_modules_and_gives_the_same_logits(levels):
    model, item = build_model(), sample(1, 6, num_images=0)
    called = []
    for part in ("vision_tower", "projector", "level_vectors", "gate"):
        getattr(model, part).register_forward_hook(lambda module, *_: called.append(module))
    expected = model(input_ids=torch.tensor([item["input_ids"]])).logits
    assert called == []
    model.train()
    inputs = {**packed_row([item], padding=0), "alignment_level": levels}
    loss = model(**inputs).loss
    parts = [model.vision_tower, model.projector, model.level_vectors]
    assert called == (parts if levels is not None else [*parts[:2], model.gate, parts[2]])
    loss.backward()
    assert model.projector.layers[0].weight.grad.abs().sum() == 0
    close(model.eval()(**inputs).logits, expected)


def test_a_row_that_is_padding_alone_gives_a_finite_loss_without_gradient():
    model = build_model().train()
    inputs = {
        "input_ids": torch.zeros(1, 4, dtype=torch.long),
        "labels": torch.full((1, 4), -100),
        "sample_index": torch.full((1, 4), -1),
    }
    loss = model(**inputs).loss
    loss.backward()
    assert loss == 0


def test_positions_of_a_packed_row_follow_from_the_sample_index():
    model, items = build_model("phi"), mixed_samples()
    inputs = packed_row(items)
    expected = model(**inputs).logits
    del inputs["position_ids"]
    assert torch.equal(model(**inputs).logits, expected)


def test_images_and_placeholders_must_match():
    model, inputs = build_model(), one_row(sample(1, 6))
    with pytest.raises(ConfigError, match="number of <image> tokens"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ConfigError, match="no images"):
        model(**{**inputs, "pixel_values": None})
    with pytest.raises(ConfigError, match="one <align> token for each"):
        model(**inputs, alignment_level=torch.tensor([1, 2]))
    with pytest.raises(ConfigError, match="no attention_mask"):
        model(**packed_row([sample(1, 6)]), attention_mask=torch.ones(1, 29))


def test_placeholder_ids_never_reach_the_embedding():
    model = build_model()
    assert model.get_input_embeddings().num_embeddings <= IMAGE
    assert model(**one_row(sample(1, 6))).logits.shape[-1] == VOCAB_SIZE


def test_training_learns_a_batch_through_every_trained_part():
    model, inputs = build_model().train(), packed_row(mixed_samples())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    moved = {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved == {"projector", "level_vectors", "gate", "language_model"}


def test_activation_checkpointing_changes_neither_loss_nor_gradient():
    results = []
    for is_checkpointed in (False, True):
        model = build_model().train()
        if is_checkpointed:
            newer = getattr(model, "activation_checkpointing_enable", None)
            (newer or model.gradient_checkpointing_enable)()
        loss = model(**packed_row(mixed_samples())).loss
        loss.backward()
        results.append((loss.detach(), model.projector.layers[0].weight.grad))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])
