"""Complete runs by name: the paper's two stages, its ablations, and the demo's two."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from training.config import (
    STAGE_1,
    STAGE_2,
    AlignmentMode,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)


def pretrain_7b() -> TrainConfig:
    """Returns the paper's stage 1 with Vicuna 7B: projector and level vectors learn.

    A pair has 576 image tokens and a short caption: four fill 2,432 tokens with 2 % of padding (of
    2,048 three leave 13 % empty; reckoned with captions of about 17 tokens), and 64 such sequences
    are the paper's batch of 256.
    Source: arXiv:2405.14129, section 4.
    """
    return TrainConfig(
        model=ModelConfig(chat_template="vicuna_v1"),
        data=DataConfig(form="caption", tokens_per_sequence=2432, sequences_per_step=64, workers=4),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        parallel=ParallelConfig(zero_stage=2),
        train_parts=STAGE_1,
        validate_every_steps=500,
        save_every_steps=500,
    )


def finetune_7b() -> TrainConfig:
    """Returns the paper's stage 2: language model, projector and gate learn.

    64 sequences of 2048 tokens hold about as many conversations as the paper's batch of 128.
    Source: arXiv:2405.14129, section 4.
    """
    return TrainConfig(
        model=ModelConfig(chat_template="vicuna_v1"),
        data=DataConfig(form="conversation", sequences_per_step=64, workers=4),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        parallel=ParallelConfig(zero_stage=3),
        train_parts=STAGE_2,
        validate_every_steps=500,
        save_every_steps=500,
    )


def finetune_7b_one_gpu() -> TrainConfig:
    """Returns stage 2 with Vicuna 7B by LoRA, meant for one GPU of 80 GB; not run on one yet.

    The language model's 6.7 G weights stay in bf16, about 13.5 GB; what learns, 0.32 G weights of
    matrices of rank 128 and 0.02 G of projector and gate, has 18 bytes each, 6.1 GB.
    Computed by `benchmarks/memory.py`.
    Source: haotian-liu/LLaVA, `finetune_lora.sh`, for rank, alpha and rates.
    """
    config = finetune_7b()
    return replace(
        config,
        optimizer=OptimizerConfig(
            learning_rate=2e-4, part_learning_rates={"projector": 2e-5, "gate": 2e-5}
        ),
        parallel=ParallelConfig(zero_stage=2),
        lora=LoraConfig(rank=128, alpha=256.0),
    )


def pretrain_13b() -> TrainConfig:
    """Returns the paper's stage 1 with Vicuna 13B."""
    return _with_13b(pretrain_7b())


def finetune_13b() -> TrainConfig:
    """Returns the paper's stage 2 with Vicuna 13B."""
    return _with_13b(finetune_7b())


def ablation(stage: Callable[[], TrainConfig], mode: AlignmentMode, levels: int = 8) -> TrainConfig:
    """Returns a stage as in a row of the paper's ablation: another mode, or number of levels."""
    config = stage()
    has_gate = mode in ("adaptive", "local")
    left_out = {"none": ("level_vectors", "gate")}.get(mode, () if has_gate else ("gate",))
    return replace(
        config,
        model=replace(config.model, alignment_mode=mode, num_levels=levels),
        train_parts=tuple(part for part in config.train_parts if part not in left_out),
    )


def demo_pretrain(models: str = "models") -> TrainConfig:
    """Returns stage 1 of the demo: SmolLM2 and a small tower, a minute on two CPU cores.

    The projector starts from a regression on all captions, somewhat louder than words, and then
    changes little: its inputs have a spread of one in 1,280 channels, so that at the rate of the
    level vectors it would forget its start within ten steps. docs/looks.md has the trials.

    Args:
        models: folder with `smollm2` and `vision_tower`, as the demo assembles them.
    """
    return TrainConfig(
        model=ModelConfig(
            language_model=f"{models}/smollm2",
            vision_tower=f"timm:local-dir:{models}/vision_tower",
            connector="pool2_linear",
            projector_start="regression",
            projector_spread=1.5,
        ),
        data=DataConfig(
            form="caption",
            tokens_per_sequence=512,
            sequences_per_step=1,
            validation_ratio=0.1,
            validation_samples=32,
            vision_features="store",
            workers=0,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            part_learning_rates={"projector": 2e-5},
            warmup_ratio=0.1,
            beta2=0.95,
        ),
        parallel=ParallelConfig(zero_stage=2, activation_checkpointing=False),
        train_parts=STAGE_1,
        max_steps=12,
    )


def demo_finetune(models: str = "models") -> TrainConfig:
    """Returns stage 2 of the demo: some 2,000 questions about pictures.

    With so few steps the squares of the first gradients, which are ten times the later ones, would
    hold back all steps at the usual beta2.

    Args:
        models: not read, stage 2 starts from the model of stage 1.
    """
    config = demo_pretrain(models)
    return replace(
        config,
        data=replace(config.data, form="conversation"),
        optimizer=replace(config.optimizer, learning_rate=5e-4, warmup_ratio=0.05),
        train_parts=STAGE_2,
        max_steps=80,
    )


def ablations(stage: Callable[[], TrainConfig]) -> dict[str, Callable[[], TrainConfig]]:
    """Returns the rows of the paper's ablation as recipes, named after the stage and the row."""
    modes: tuple[AlignmentMode, ...] = ("local", "global", "average", "none")
    rows: dict[str, Callable[[], TrainConfig]] = {
        f"{stage.__name__}_{mode}": partial(ablation, stage, mode) for mode in modes
    }
    for levels in (4, 6, 10):
        rows[f"{stage.__name__}_{levels}_levels"] = partial(ablation, stage, "adaptive", levels)
    return rows


PRETRAIN_RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "pretrain_7b": pretrain_7b,
    "pretrain_13b": pretrain_13b,
    "demo_pretrain": demo_pretrain,
    **ablations(pretrain_7b),
}
"""What `aligngpt-train pretrain --recipe` knows."""

FINETUNE_RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "finetune_7b": finetune_7b,
    "finetune_7b_one_gpu": finetune_7b_one_gpu,
    "finetune_13b": finetune_13b,
    "demo_finetune": demo_finetune,
    **ablations(finetune_7b),
}
"""What `aligngpt-train finetune --recipe` knows."""


def _with_13b(config: TrainConfig) -> TrainConfig:
    model = replace(config.model, language_model="lmsys/vicuna-13b-v1.5")
    return replace(config, model=model)
