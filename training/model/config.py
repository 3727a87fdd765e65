"""What an AlignGPT model is made of: its parts, their sizes, and how alignment is used."""

from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from schemas.errors import ConfigError
from schemas.levels import check_num_levels
from training.model.inputs import Placeholders
from training.model.projector import check_projector_type, reduced_count

ALIGNMENT_MODES = ("adaptive", "local", "global", "average", "none")
"""How the vector of a sample is made in stage 2 and inference, from level vectors H_1 .. H_N.

adaptive: H_N + sum w_i H_i, w from the gate (the paper)   local: sum w_i H_i
global: H_N   average: H_N + mean of the others            none: no vector, LLaVA-1.5
Source: arXiv:2405.14129, section 3 and its ablations.
"""

FEATURE_SELECTIONS = ("patch", "cls_patch")


class TimmTowerConfig(PreTrainedConfig):
    """The feature map of a timm backbone as a vision tower.

    Attributes:
        architecture: timm's name of the model, such as `tf_efficientnet_lite0`.
        model_args: keyword arguments of the architecture beyond its defaults.
        hidden_size: channels of the feature map.
        image_size: side of the square input, in pixels.
        num_patches: positions of the feature map, or patch tokens of a transformer.
        num_prefix_tokens: tokens before the patches (CLS, registers), which are left out.
    """

    model_type = "aligngpt_timm_tower"

    architecture: str = "tf_efficientnet_lite0"
    model_args: dict[str, Any] | None = None
    hidden_size: int = 1280
    image_size: int = 224
    num_patches: int = 49
    num_prefix_tokens: int = 0


def is_timm_tower(vision_config: Any) -> bool:
    """Returns whether a tower is timm's.

    By its name: where transformers loads this file from a model folder, it does so more than once,
    and each time the class is another.
    """
    return bool(vision_config.model_type == TimmTowerConfig.model_type)


class AlignGPTConfig(PreTrainedConfig):
    """The configuration of `AlignGPTForConditionalGeneration`.

    Attributes:
        vision_config: a CLIP or SigLIP vision config, or a `TimmTowerConfig`.
        text_config: the config of any causal language model of transformers.
        vision_feature_layer: the tower's hidden state that is used, counted as in
            `hidden_states` (0 is the embedding, -1 the last layer). A timm tower gives its final
            feature map whatever this says.
        vision_feature_select: `patch`, or `cls_patch` to keep the class token of CLIP too.
        image_scales: sides in pixels of the multi-scale input S2 (arXiv:2403.13043), each a
            multiple of the tower's own; None for the tower's own alone.
        projector_type: `linear`, `identity` or `mlp{k}x_gelu`, after `pool{k}_` or
            `pixel_shuffle{k}_` for fewer vectors of an image.
        standardizes_features: whether the projector brings each channel that it reads to mean 0
            and spread 1, by numbers that are kept with its weights.
        alignment_mode: one of ALIGNMENT_MODES.
        num_levels: N, the number of alignment levels.
        gate_hidden_size: width of the gate's hidden layer.
        gate_num_patches: inputs of the gate; None for the tower's number of patches.
        gate_reads_answer: True to let the gate read the answer's tokens too, as the published
            code does in training. By default it reads the prompt alone, in training as at
            inference.
        image_token_id: id of `<image>`. It lies beyond the words that are ever predicted.
        align_token_id: id of `<align>`.
        leading_bos_token_id: the BOS with which the tokenizer starts a text; `<align>` stands
            after it and the gate does not read it. None where texts start without.
        align_after_first_token: True to put `<align>` after the first token and to let the gate
            read from the second word on, where texts start without BOS, too: what the published
            code does, whose models of Phi and Qwen2 have no BOS.
        tokenizes_by_piece: True to tokenise the text around each picture as texts of their own,
            as the published code does; set at import.
        insertion_scale: what pictures and level vectors are multiplied by when they are put among
            the words; the gate reads the words divided by it. The published code of Gemma does
            so: its words' embeddings are scaled inside the language model, with all else.
        imported_from: what the model was imported from: a folder, or a name at its revision.
    """

    model_type = "aligngpt"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    vision_feature_layer: int = -2
    vision_feature_select: str = "patch"
    image_scales: list[int] | None = None
    projector_type: str = "mlp2x_gelu"
    standardizes_features: bool = False
    alignment_mode: str = "adaptive"
    num_levels: int = 8
    gate_hidden_size: int = 256
    gate_num_patches: int | None = None
    gate_reads_answer: bool = False
    image_token_id: int = 32000
    align_token_id: int = 32001
    leading_bos_token_id: int | None = None
    align_after_first_token: bool = False
    tokenizes_by_piece: bool = False
    insertion_scale: float = 1.0
    imported_from: str | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Builds the parts' configs from dictionaries and checks the settings."""
        self.vision_config = _part_config(self.vision_config, "clip_vision_model")
        self.text_config = _part_config(self.text_config, "llama")
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def vision_hidden_size(self) -> int:
        """Channels of the features that reach the projector."""
        return int(self.vision_config.hidden_size) * len(self.image_scales or [0])

    @property
    def text_hidden_size(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.text_config.hidden_size)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square image that the model takes."""
        return max(self.image_scales) if self.image_scales else int(self.vision_config.image_size)

    @property
    def num_tiles(self) -> int:
        """Pictures of the tower's own size that it sees for one image."""
        own = int(self.vision_config.image_size)
        return sum((scale // own) ** 2 for scale in self.image_scales or [own])

    @property
    def num_image_tokens(self) -> int:
        """Vectors of one image that the language model reads."""
        return reduced_count(self.projector_type, self.num_patches)

    @property
    def num_patches(self) -> int:
        """Vectors of one image that the tower gives, P."""
        vision = self.vision_config
        if is_timm_tower(vision):
            return int(vision.num_patches)
        patches = (vision.image_size // vision.patch_size) ** 2
        has_class_token = vision.model_type.startswith("clip")
        return int(patches + (self.vision_feature_select == "cls_patch" and has_class_token))

    @property
    def gate_width(self) -> int:
        """Inputs of the gate."""
        return self.gate_num_patches or self.num_image_tokens

    @property
    def has_gate(self) -> bool:
        """Whether the mode weighs the local vectors by a gate."""
        return self.alignment_mode in ("adaptive", "local")

    @property
    def has_align_token(self) -> bool:
        """Whether a sample with images has an alignment vector."""
        return self.alignment_mode != "none"

    @property
    def placeholders(self) -> Placeholders:
        """How a sample of this model is laid out."""
        return Placeholders(
            image_token_id=self.image_token_id,
            align_token_id=self.align_token_id,
            num_image_tokens=self.num_image_tokens,
            bos_token_id=self.leading_bos_token_id,
            has_align_token=self.has_align_token,
            align_after_first_token=self.align_after_first_token,
            tokenizes_by_piece=self.tokenizes_by_piece,
        )

    def _check(self) -> None:
        if self.alignment_mode not in ALIGNMENT_MODES:
            raise ConfigError(
                f"alignment_mode must be one of {', '.join(ALIGNMENT_MODES)}, "
                f"got {self.alignment_mode}"
            )
        check_num_levels("num_levels", self.num_levels)
        if self.vision_feature_select not in FEATURE_SELECTIONS:
            raise ConfigError(
                f"vision_feature_select must be one of {', '.join(FEATURE_SELECTIONS)}, "
                f"got {self.vision_feature_select}"
            )
        check_projector_type(self.projector_type)
        reduced_count(self.projector_type, self.num_patches)
        self._check_layer()
        self._check_scales()

    def _check_layer(self) -> None:
        if is_timm_tower(self.vision_config):
            return
        layers = int(self.vision_config.num_hidden_layers)
        if not -layers - 1 <= self.vision_feature_layer <= layers:
            raise ConfigError(
                f"vision_feature_layer must be in {-layers - 1}..{layers} (the tower has {layers} "
                f"layers, and 0 is its embedding), got {self.vision_feature_layer}"
            )

    def _check_scales(self) -> None:
        own = int(self.vision_config.image_size)
        if self.image_scales is None:
            return
        if self.vision_feature_select != "patch":
            raise ConfigError(
                "image_scales joins feature maps and needs vision_feature_select patch"
            )
        if not self.image_scales or any(scale <= 0 or scale % own for scale in self.image_scales):
            raise ConfigError(
                f"image_scales must be multiples of the tower's {own} pixels, "
                f"got {self.image_scales}"
            )


def _part_config(part: Any, default_type: str) -> Any:
    """Returns the config of a part, from a config, its dictionary, or None for the default."""
    if part is None:
        return CONFIG_MAPPING[default_type]()
    if not isinstance(part, dict):
        return part
    settings = dict(part)
    return CONFIG_MAPPING[settings.pop("model_type", default_type)](**settings)


AutoConfig.register(TimmTowerConfig.model_type, TimmTowerConfig, exist_ok=True)
AutoConfig.register(AlignGPTConfig.model_type, AlignGPTConfig, exist_ok=True)
