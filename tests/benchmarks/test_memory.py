"""The memory that recipes are said to take is what modules and DeepSpeed's engine hold."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from tests.training.model.tiny_models import VOCAB_SIZE, build_model, one_row, sample, text_config
from training.config import DataConfig, LoraConfig, ModelConfig, ParallelConfig, TrainConfig
from training.engine.deepspeed import (
    deepspeed_config,
    start_distributed,
    torchs_own_linear_after,
)
from training.engine.start import checkpoint_activations, start_engine
from training.parts import choose_trained
from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, finetune_7b, finetune_7b_one_gpu

TOKENS = 128
PARTS = ("projector", "gate", "language_model")


def saved_bytes(tensors: Iterable[Tensor], model: torch.nn.Module) -> int:
    """Returns the bytes of these tensors' memory, each piece once, the model's weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    pieces = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for piece, size in pieces.items() if piece not in weights)


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """Gives the list of what autograd saves for its backward pass meanwhile."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def wide_model(config: TrainConfig) -> Any:
    """Returns a model in bf16 whose blocks are wide enough that nothing small counts."""
    text = text_config(
        hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, num_hidden_layers=3,
    )  # fmt: skip
    model = build_model(text_config=text).bfloat16().train()
    choose_trained(model, config)
    return model


@pytest.mark.parametrize(
    ("train_parts", "rank"),
    [(PARTS, 0), (PARTS, 8), (("projector", "level_vectors"), 0)],
    ids=["whole", "lora", "frozen"],
)
def test_activations_are_what_autograd_saves_to_three_percent(
    train_parts: tuple[str, ...], rank: int
) -> None:
    config = TrainConfig(
        data=DataConfig(tokens_per_sequence=TOKENS),
        lora=LoraConfig(rank=rank),
        train_parts=train_parts,
    )
    model = wide_model(config)
    vectors = torch.randn(1, TOKENS, 64, dtype=torch.bfloat16, requires_grad=True)
    with recorded() as saved:
        model.language_model.model(inputs_embeds=vectors, use_cache=False)
    said, _ = memory.activation_bytes(model, config, width=2)
    said -= memory.projector_bytes(model, memory.pictures(model, config), width=2)
    assert saved_bytes(saved, model) == pytest.approx(said, rel=0.03)


def test_with_checkpointing_the_inputs_of_the_blocks_stay_and_nothing_else_in_them() -> None:
    config = TrainConfig(data=DataConfig(tokens_per_sequence=TOKENS), train_parts=PARTS)
    model = wide_model(config)
    checkpoint_activations(model)
    inputs: list[Tensor] = []
    for layer in model.language_model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    vectors = torch.randn(1, TOKENS, 64, dtype=torch.bfloat16, requires_grad=True)
    with recorded() as saved:
        model.language_model.model(inputs_embeds=vectors, use_cache=False)
    layer, text = model.language_model.model.layers[0], model.config.text_config
    _, most = memory.activation_bytes(model, config, width=2)
    most -= memory.projector_bytes(model, memory.pictures(model, config), width=2)
    said = most - TOKENS * memory.block_bytes(layer, text, width=2)
    assert saved_bytes([*saved, *inputs], model) == pytest.approx(said, rel=0.03)


def test_the_projector_keeps_what_is_said() -> None:
    model = wide_model(TrainConfig())
    features = torch.randn(5, 16, 8, dtype=torch.bfloat16)
    with recorded() as saved:
        model.projector(features)
    assert saved_bytes(saved, model) == memory.projector_bytes(model, 5, width=2)


def test_logits_their_fp32_copy_and_the_loss_are_ten_bytes_a_word_and_target() -> None:
    config = TrainConfig(data=DataConfig(form="conversation", tokens_per_sequence=TOKENS))
    model = wide_model(config)
    logits = torch.randn(TOKENS, VOCAB_SIZE, dtype=torch.bfloat16, requires_grad=True)
    wide = logits.float()
    with recorded() as saved:
        F.cross_entropy(wide, torch.zeros(TOKENS, dtype=torch.int64), reduction="none")
    held = saved_bytes([logits, wide, *saved], model)
    assert held == pytest.approx(memory.logit_bytes(model, config, width=2), rel=0.03)


@pytest.fixture
def given_back() -> Iterator[None]:
    with torchs_own_linear_after():
        yield


@pytest.mark.usefixtures("given_back")
@pytest.mark.parametrize("stage", [2, 3])
def test_an_engine_holds_the_weights_gradients_and_states_that_are_said(stage: Any) -> None:
    start_distributed()
    config = TrainConfig(
        data=DataConfig(sequences_per_step=2),
        parallel=ParallelConfig(zero_stage=stage, precision="bf16", activation_checkpointing=False),
        train_parts=PARTS,
    )
    model = build_model()
    choose_trained(model, config)
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = start_engine(config, model)
    buffers: list[float] = []  # ZeRO 2 makes them anew for each backward pass
    first = next(engine.module.projector.parameters())  # its gradient is among the last
    first.register_hook(lambda _: buffers.append(buffer_bytes(engine.optimizer)))
    for _ in range(3):  # a step of two, and half of the next
        loss = engine(**one_row(sample(0, num_words=6))).loss
        engine.backward(loss)
        engine.step()
    said = memory.state_bytes(weights, trained, deepspeed_config(config, 1, has_gpu=False), 1)
    held = held_by_engine(engine.optimizer, stage)
    assert buffers == [said.pop("buffers")] * 3
    own = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    held["weights"] = sum(p.numel() * p.element_size() for p in own)
    assert held == pytest.approx(said, rel=0.01)


def held_by_engine(optimizer: Any, stage: int) -> dict[str, float]:
    """Returns the bytes of gradients and optimizer that DeepSpeed 0.19.8 holds."""
    if stage == 3:
        masters = optimizer.fp32_partitioned_groups_flat
        gradients = [optimizer.grad_partitions_flat_buffer]
    else:
        masters = optimizer.single_partition_of_fp32_groups
        gradients = [group.flat_partition for group in optimizer.averaged_gradients.values()]
    moments = [
        state[name]
        for state in optimizer.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    return {"gradients": tensor_bytes(gradients), "optimizer": tensor_bytes([*masters, *moments])}


def buffer_bytes(optimizer: Any) -> float:
    """Returns the bytes of DeepSpeed's buckets of gradients."""
    buffers = [bucket.buffer for bucket in optimizer.ipg_buckets.values()]
    return tensor_bytes(t for some in buffers for t in (some if isinstance(some, list) else [some]))


def tensor_bytes(tensors: Iterable[Tensor]) -> float:
    """Returns the bytes of all their numbers."""
    return float(sum(t.numel() * t.element_size() for t in tensors))


@pytest.mark.parametrize(
    ("name", "weights"),
    [("lmsys/vicuna-7b-v1.5", 6_738_415_616), ("lmsys/vicuna-13b-v1.5", 13_015_864_320)],
)
def test_vicunas_have_the_published_number_of_weights(name: str, weights: int) -> None:
    model = memory.sized_model(TrainConfig(model=ModelConfig(language_model=name))).model
    assert sum(p.numel() for p in model.language_model.parameters()) == weights


def test_the_page_has_what_the_script_computes() -> None:
    page = memory.PAGE.read_text(encoding="utf-8")
    recipes = {"finetune_7b": finetune_7b(), "finetune_7b_one_gpu": finetune_7b_one_gpu()}
    for line in memory.memory_table(recipes).splitlines():
        assert line in page
    for name in memory.base_recipes():
        assert f"| {name} | 1 |" in page


def test_a_page_is_written_between_its_marks_alone() -> None:
    page = f"before\n{memory.BEGIN}\nold\n{memory.END}\nafter\n"
    written = memory.with_tables(page, "new")
    assert written == f"before\n{memory.BEGIN}\n\nnew\n\n{memory.END}\nafter\n"


def test_only_rows_of_the_ablation_have_no_line() -> None:
    left_out = {*PRETRAIN_RECIPES, *FINETUNE_RECIPES} - memory.base_recipes().keys()
    rows = ("local", "global", "average", "none", "4_levels", "6_levels", "10_levels")
    assert left_out == {f"{stage}_7b_{row}" for stage in ("pretrain", "finetune") for row in rows}
