"""How a model is put together, fed and trained: one frozen dataclass for each part."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from schemas.errors import ConfigError, require_at_least, require_positive
from schemas.levels import check_num_levels

AlignmentMode = Literal["adaptive", "local", "global", "average", "none"]
Part = Literal["projector", "level_vectors", "gate", "language_model"]
FeatureSelect = Literal["patch", "cls_patch"]
SampleForm = Literal["caption", "conversation"]
Precision = Literal["auto", "bf16", "fp32"]
PublishedForm = Literal["aligngpt", "llava", "stage_1", "hf", "llava_hf"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"]
Offload = Literal["none", "optimizer", "all"]
ProjectorStart = Literal["paper", "scaled", "regression"]
LevelCurriculum = Literal["none", "low_first", "low_left_out"]
Control = Literal["none", "exchanged"]
OnCorrupt = Literal["error", "skip"]

MOST_SECONDS = 86_400
"""That processes wait for each other, or for a host that does not answer."""
STAGE_1 = ("projector", "level_vectors")
STAGE_2 = ("projector", "gate", "language_model")
"""What learns in each stage; the vision tower never does.

Source: arXiv:2405.14129, section 4.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the model is made of. With a model folder to start from, only five are read: alignment
    mode and levels, which must be the folder's, chat template, attention and what the gate reads.
    """

    language_model: str = "lmsys/vicuna-7b-v1.5"
    """Folder or hub name of a causal language model of transformers."""
    vision_tower: str = "openai/clip-vit-large-patch14-336"
    """Folder or hub name of a CLIP or SigLIP model, folder of a timm backbone, or timm:NAME."""
    alignment_mode: AlignmentMode = "adaptive"
    """How the level vectors are used: the paper's way, one of its ablations, or not at all."""
    num_levels: int = 8
    """Alignment levels of the data."""
    connector: str = "mlp2x_gelu"
    """From an image's vectors to the language model's: linear, or mlp{k}x_gelu, k linear layers
    with GELU between them. Before either, pixel_shuffle{k}_ joins each k x k vectors to one, and
    pool{k}_ averages them to k x k: fewer tokens for an image, as pixel_shuffle2_mlp2x_gelu."""
    projector_start: ProjectorStart = "paper"
    """Where a new projector starts. paper: random weights. scaled: what it reads is standardised,
    and what it says has projector_spread times the words' spread. regression: so, and from a ridge
    regression of what is said about up to 10,000 pictures on what the tower sees in them."""
    projector_spread: float = 0.5
    """Spread of what a scaled or regression start says of pictures, in that of the words. Below 1
    it disturbs a language model little; a small one notices pictures sooner above 1."""
    vision_feature_layer: int = -2
    """Hidden layer of a CLIP or SigLIP tower that the projector reads."""
    vision_feature_select: FeatureSelect = "patch"
    """patch, or cls_patch to keep CLIP's class token too."""
    image_scales: tuple[int, ...] = ()
    """Sides in pixels of the multi-scale input S2, as 384 768, each a multiple of the tower's own;
    none: the tower's own alone."""
    gate_reads_answer: bool | None = None
    """Whether the gate reads the answer too in training, as in the published code; by default as
    the model folder says, and in a new model it reads the prompt alone."""
    chat_template: Literal["tokenizer", "vicuna_v1"] = "tokenizer"
    """How conversations are written: the tokenizer's own template (a model folder's, where one is
    given), or the paper's."""
    attention: Attention = "auto"
    """How the language model computes attention; auto skips what packed samples do not see of each
    other, by flex_attention on a GPU, else by sdpa for each sample, where that gives the same."""

    def __post_init__(self) -> None:
        check_num_levels("model.num_levels", self.num_levels)
        require_positive(self, ("projector_spread",), "model.")
        if any(scale < 1 for scale in self.image_scales):
            raise ConfigError(f"model.image_scales must be at least 1, got {self.image_scales}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is read, and how samples share a sequence."""

    weights: tuple[float, ...] = ()
    """How often each dataset is seen in an epoch, one number for each folder; none: once each."""
    level_weights: tuple[float, ...] = ()
    """How often samples of each alignment level are seen in an epoch, one number for each level
    from 1 on, 0 to leave a level out; none: once each. With data.weights both count."""
    level_curriculum: LevelCurriculum = "none"
    """low_first: badly aligned pairs come rather early in an epoch, the best ones late.
    low_left_out: as the epochs go on, level after level is left out from the lowest on, until the
    last part of the run sees the best alone. Samples without a level stay where they are."""
    validation_ratio: float = 0.02
    """Share of the pictures that is held out, chosen by the hash of the picture's address."""
    validation_data: tuple[str, ...] = ()
    """Dataset folders to validate on instead of a share of the training data."""
    validation_samples: int = 512
    """Most samples that a validation reads."""
    form: SampleForm = "caption"
    """caption: a picture and the caption to say; conversation: turns by the chat template."""
    tokens_per_sequence: int = 2048
    """Tokens of a packed sequence; longer samples are cut off at the end."""
    sequences_per_step: int = 64
    """Packed sequences that one optimizer step sees, over all processes."""
    sequences_per_device: int = 1
    """Packed sequences in one forward pass; the rest of a step is accumulated."""
    packing_window: int = 64
    """Waiting samples, in the shuffled order, among which the mates of a sequence are chosen."""
    vision_features: Literal["compute", "store"] = "compute"
    """store keeps what the frozen vision tower gives for each picture on disk and computes it once;
    the room that it takes is said before."""
    vision_features_folder: str = ""
    """Folder of stored features, for several runs; empty: OUT/vision_features."""
    rows_folder: str = ""
    """Folder of a copy of the data's rows and of plans, mapped by all processes of a machine, for
    several runs; empty: OUT/rows from 100,000 samples on, removed when the run is finished."""
    workers: int = 2
    """Processes that decode and tokenise for each device; 0 does it in the loop."""
    on_corrupt: OnCorrupt = "error"
    """What a picture that cannot be decoded does: error stops the run and names shard and key;
    skip goes on without the sample, counts it, and leaves all others where the plan has them."""
    on_bad_sample: OnCorrupt = "error"
    """What a conversation does that the chat template refuses, or writes so that its answers cannot
    be told apart: error stops the run and names it; skip leaves it out and counts it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_ratio < 1.0:
            raise ConfigError(
                f"data.validation_ratio must be in [0, 1), got {self.validation_ratio}"
            )
        from_one = (
            "tokens_per_sequence",
            "sequences_per_step",
            "sequences_per_device",
            "packing_window",
            "validation_samples",
        )
        require_at_least(1, self, from_one, "data.")
        require_at_least(0, self, ("workers",), "data.")
        for name in ("weights", "level_weights"):
            if any(not 0 <= weight < math.inf for weight in getattr(self, name)):
                raise ConfigError(
                    f"data.{name} must be numbers from 0 on, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Small matrices beside the language model's own that learn in their place."""

    rank: int = 0
    """Width of the matrices; 0 lets the language model's own weights learn."""
    alpha: float = 32.0
    """What they add is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of their inputs that is dropped in training."""

    def __post_init__(self) -> None:
        require_at_least(0, self, ("rank",), "lora.")
        require_positive(self, ("alpha",), "lora.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-3
    """Highest rate, reached at the end of the warm-up; falls to 0 along a cosine."""
    part_learning_rates: dict[Part, float] = field(default_factory=dict)
    """Other rates for single parts of the model that learn, as projector 2e-5."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases, norms and level vectors have none."""
    beta1: float = 0.9
    """Decay of the mean of the gradient."""
    beta2: float = 0.999
    """Decay of the mean of its square."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""

    def __post_init__(self) -> None:
        require_positive(self, ("learning_rate",), "optimizer.")
        for part, rate in self.part_learning_rates.items():
            if not 0 < rate < math.inf:
                raise ConfigError(
                    f"optimizer.part_learning_rates must be positive, got {part} {rate}; what is "
                    "not to learn is left out of train_parts"
                )
        for name in ("warmup_ratio", "beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "epsilon", "max_gradient_norm"):
            if not 0.0 <= getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ConfigError(f"optimizer.{name} must be a number from 0 on, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """How DeepSpeed spreads the work."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is split over the processes: 1 optimizer states, 2 also gradients, 3 also weights."""
    offload: Offload = "none"
    """What waits in main memory: nothing, the optimizer's states, or the weights too (ZeRO-3)."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 on a GPU or processor with
    instructions for it, else fp32. A run keeps what it began with. The optimizer keeps fp32."""
    activation_checkpointing: bool = True
    """Whether activations are computed twice instead of kept."""
    compile_blocks: bool = False
    """Whether torch.compile makes kernels for the language model's blocks: the first steps take
    minutes, the others less time. On a CPU it needs a C++ compiler."""
    join_seconds: float = 1800.0
    """How long processes wait for each other at the start: hosts may come up minutes apart."""
    lost_after_seconds: float = 180.0
    """After how long without an answer a host counts as lost, and the others end. A cut of the
    network that is shorter is waited out."""

    def __post_init__(self) -> None:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ConfigError(
                "parallel.precision bf16 needs parallel.zero_stage 1, 2 or 3: without ZeRO, "
                "DeepSpeed has no fp32 copy of the weights that a checkpoint could hold. On one "
                "process stage 1 splits nothing and costs no more than 0"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ConfigError("parallel.offload all needs parallel.zero_stage 3")
        if self.offload != "none" and self.zero_stage == 0:
            raise ConfigError("parallel.offload needs parallel.zero_stage 1, 2 or 3")
        for name in ("join_seconds", "lost_after_seconds"):
            if not 1 <= getattr(self, name) <= MOST_SECONDS:
                raise ConfigError(
                    f"parallel.{name} must be in 1..{MOST_SECONDS:,}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train_parts: tuple[str, ...] = STAGE_1
    """What learns: projector, level_vectors, gate, language_model, or regular expressions for the
    starts of weights' names. Everything else keeps its weights; the vision tower never learns."""
    epochs: int = 1
    """Passes over the data."""
    max_steps: int = 0
    """Stops the plan after this many optimizer steps; 0 runs all epochs."""
    seed: int = 0
    """Of the order of the samples and of new weights."""
    log_every_steps: int = 1
    """Steps between two lines of metrics."""
    wandb_project: str = ""
    """Project of Weights & Biases that gets the metrics, too (needs the extra wandb); empty: none.
    WANDB_MODE=offline and wandb's other variables hold."""
    validate_every_steps: int = 0
    """Steps between two validations; 0 validates at the start and at the end only."""
    save_every_steps: int = 0
    """Steps between two checkpoints; 0 saves one on SIGTERM only."""
    told_samples: int = 32
    """Held-out samples with pictures that the model is told each level of at the end, for the
    table and picture of its levels (OUT/levels.json and .png); 0 leaves both out."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_checkpoint_every_hours: float = 0.0
    """Of older ones, one is kept for so many hours of training; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.max_steps < 0:
            raise ConfigError(
                f"epochs must be at least 1 and max_steps at least 0, "
                f"got {self.epochs} and {self.max_steps}"
            )
        weights = self.data.level_weights
        if weights and len(weights) != self.model.num_levels:
            raise ConfigError(
                f"data.level_weights must have one number for each of model.num_levels = "
                f"{self.model.num_levels} levels, got {len(weights)}"
            )
        from_zero = (
            "told_samples",
            "validate_every_steps",
            "save_every_steps",
            "keep_checkpoint_every_hours",
        )
        require_at_least(0, self, from_zero)
        require_at_least(1, self, ("log_every_steps", "keep_checkpoints"))
        if not self.train_parts:
            raise ConfigError(
                "train_parts must name at least one of projector, level_vectors, gate, "
                "language_model"
            )
        for rule in self.train_parts:
            try:
                re.compile(rule)
            except re.error as error:
                raise ConfigError(
                    f"train_parts: {rule!r} is no regular expression ({error}): a sign that stands "
                    "for itself needs a backslash before it"
                ) from error
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number of 64 bits, got {self.seed}")
        if self.lora.rank and "language_model" not in self.train_parts:
            raise ConfigError(
                f"lora.rank is {self.lora.rank}, but train_parts has no language_model: name it, "
                "or set lora.rank 0"
            )

    @property
    def is_language_trained(self) -> bool:
        """Whether any of the language model's own weights learn."""
        return not self.lora.rank and any(
            rule.startswith("language_model") for rule in self.train_parts
        )

    @property
    def tells_levels(self) -> bool:
        """Whether the model is told the level of each sample with a picture, as in stage 1."""
        return self.data.form == "caption" and self.model.alignment_mode != "none"

    def accumulation(self, processes: int) -> int:
        """Returns how many forward passes each of `processes` makes for one optimizer step.

        Raises:
            ConfigError: if the sequences of a step cannot be dealt out evenly.
        """
        at_once = processes * self.data.sequences_per_device
        if self.data.sequences_per_step % at_once:
            raise ConfigError(
                f"data.sequences_per_step must be a multiple of processes x "
                f"data.sequences_per_device = {processes} x {self.data.sequences_per_device}, "
                f"got {self.data.sequences_per_step}"
            )
        return self.data.sequences_per_step // at_once
