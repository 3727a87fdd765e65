"""The vision tower: a frozen image encoder that gives one vector for each patch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPVisionModel,
    SiglipVisionModel,
)
from transformers.configuration_utils import PreTrainedConfig

from schemas.errors import ConfigError
from training.model.config import AlignGPTConfig, TimmTowerConfig, is_timm_tower


class VisionTower(nn.Module):
    """A CLIP or SigLIP vision model, or the feature map of a timm backbone; never trained.

    It stays in evaluation mode whatever the model around it does, and records no gradient.

    Shapes: I images, P patches, C channels, S number of scales.
    Source: feature choice as in LLaVA-1.5 (arXiv:2310.03744): the last layer but one, without
    the class token. Multi-scale input S2: arXiv:2403.13043, section 3.
    """

    def __init__(self, config: AlignGPTConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else build_backbone(config.vision_config)
        self.is_timm = is_timm_tower(config.vision_config)
        self.num_prefix_tokens = _num_prefix_tokens(config)
        self.feature_layer = config.vision_feature_layer
        self.scales = config.image_scales
        self.image_size = int(config.vision_config.image_size)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "VisionTower":
        """Returns itself, in evaluation mode: the tower is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the features of each patch, (I, P, C), or (I, P, S * C) with S scales."""
        if self.scales is None:
            return self._features(pixel_values)
        maps = [self._map_at(pixel_values, scale) for scale in self.scales]
        joined = torch.cat(maps, dim=1)  # (I, S * C, h, w)
        return joined.flatten(2).transpose(1, 2)

    def _map_at(self, pixel_values: Tensor, scale: int) -> Tensor:
        """Returns the map of the image at `scale` pixels, (I, C, h, w) as of the tower's own size.

        The image is seen tile by tile; the tiles' maps are joined and pooled by area.
        """
        tiles_a_side = scale // self.image_size
        if pixel_values.shape[-1] != scale:
            resized = F.interpolate(pixel_values.float(), size=scale, mode="bicubic")
            pixel_values = resized.to(pixel_values.dtype)
        size = self.image_size
        tiles = pixel_values.unfold(2, size, size).unfold(3, size, size)  # (I, 3, n, n, s, s)
        tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # (I * n * n, 3, s, s)
        features = self._features(tiles)
        side = round(features.shape[1] ** 0.5)
        grid = features.unflatten(0, (-1, tiles_a_side, tiles_a_side)).unflatten(3, (side, side))
        grid = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (I, C, n * h, n * w)
        return F.interpolate(grid.float(), size=side, mode="area").to(features.dtype)

    def _features(self, pixel_values: Tensor) -> Tensor:
        """Returns the patch features of images of the tower's own size, (I, P, C)."""
        if self.is_timm:
            features: Tensor = self.backbone(pixel_values)
        else:
            features = self._hidden_state(pixel_values)
        return features[:, self.num_prefix_tokens :]

    def _hidden_state(self, pixel_values: Tensor) -> Tensor:
        """Returns the hidden state that is used; the layers behind it are not computed."""
        inner: Any = getattr(self.backbone, "vision_model", self.backbone)
        layers = inner.encoder.layers
        depth = self.feature_layer + (len(layers) + 1 if self.feature_layer < 0 else 0)
        if not 0 <= depth < len(layers):  # the last one, which models end in their own ways
            outputs = self.backbone(pixel_values, output_hidden_states=True)
            last: Tensor = outputs.hidden_states[self.feature_layer]
            return last
        hidden: Tensor = inner.embeddings(pixel_values)
        if hasattr(inner, "pre_layrnorm"):
            hidden = inner.pre_layrnorm(hidden)
        for layer in layers[:depth]:
            hidden = layer(hidden, attention_mask=None)
        return hidden


class TimmBackbone(nn.Module):
    """A timm model without its head, whose output is always a sequence (I, P, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the feature map flattened row by row, prefix tokens included."""
        # Convolutions are more than twice as fast so, above all in bf16 on a CPU.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.model.forward_features(pixel_values)  # type: ignore[operator]
        return _as_sequence(features, self.model)


def build_backbone(vision_config: Any) -> nn.Module:
    """Returns the tower of this config with new weights."""
    if is_timm_tower(vision_config):
        import timm  # takes seconds to start, and most towers are none of its

        model = timm.create_model(
            vision_config.architecture, **{**(vision_config.model_args or {}), "num_classes": 0}
        )
        return TimmBackbone(model)
    backbone: nn.Module = AutoModel.from_config(vision_config)
    return backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedTower:
    """A pretrained tower with what its pictures must look like."""

    backbone: nn.Module
    config: PreTrainedConfig
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


CLIP_KINDS = ("clip", "clip_vision_model")
SIGLIP_KINDS = ("siglip", "siglip_vision_model")
"""Kinds of configurations that transformers' CLIP and SigLIP vision models have."""


def load_tower(name_or_path: str) -> PretrainedTower:
    """Returns a pretrained tower.

    Args:
        name_or_path: a folder or name that transformers loads as CLIP or SigLIP; or a folder
            with timm's config.json and weights; or `timm:<name>` for a model that timm downloads.
    """
    if _is_timm_folder(name_or_path):
        name_or_path = f"local-dir:{name_or_path}"
    if name_or_path.startswith(("timm:", "local-dir:")):
        return _load_timm_tower(name_or_path.removeprefix("timm:"))
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    vision_config = getattr(config, "vision_config", config)
    if vision_config.model_type.startswith("siglip2"):
        raise ConfigError(
            f"{name_or_path} is a SigLIP 2 of the kind NaFlex, for pictures of any shape, cut into "
            "patches: take one of a fixed size, as google/siglip2-so400m-patch14-384"
        )
    backbone = _transformers_tower(name_or_path, vision_config)
    images = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    return PretrainedTower(
        backbone=backbone,
        config=vision_config,
        image_mean=tuple(images.image_mean),
        image_std=tuple(images.image_std),
    )


def _is_timm_folder(name_or_path: str) -> bool:
    """Returns whether this is a folder whose config.json is timm's: it names an architecture."""
    path = Path(name_or_path) / "config.json"
    if not path.is_file():
        return False
    settings = json.loads(path.read_text(encoding="utf-8"))
    return "architecture" in settings and "model_type" not in settings


def _transformers_tower(name_or_path: str, vision_config: PreTrainedConfig) -> nn.Module:
    """Returns the vision half of a CLIP or SigLIP folder."""
    for kinds, model in ((CLIP_KINDS, CLIPVisionModel), (SIGLIP_KINDS, SiglipVisionModel)):
        if vision_config.model_type in kinds:
            backbone: nn.Module = model.from_pretrained(name_or_path)
            return backbone
    raise ConfigError(
        f"the vision tower must be CLIP or SigLIP, or timm:<name>; {name_or_path} is "
        f"{vision_config.model_type}"
    )


def _load_timm_tower(name: str) -> PretrainedTower:
    """Returns a pretrained timm model, its sizes measured by one forward pass."""
    model_args: dict[str, Any] = {}
    if name.startswith("local-dir:"):
        settings = json.loads((Path(name.removeprefix("local-dir:")) / "config.json").read_text())
        model_args = settings.get("model_args", {})
    import timm

    return wrap_timm(timm.create_model(name, pretrained=True, num_classes=0), model_args)


def wrap_timm(model: nn.Module, model_args: dict[str, Any] | None = None) -> PretrainedTower:
    """Returns a timm model as a tower, with the config that builds it again.

    Args:
        model: made by `timm.create_model`.
        model_args: the arguments it was made with, beyond name, weights and number of classes.
    """
    settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    sides = (model_args or {}).get("img_size", settings["input_size"][-1])
    image_size = int(sides if isinstance(sides, int) else sides[-1])
    backbone = TimmBackbone(model).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    num_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
    config = TimmTowerConfig(
        architecture=settings["architecture"],
        model_args=model_args or None,
        hidden_size=features.shape[-1],
        image_size=image_size,
        num_patches=features.shape[1] - num_prefix_tokens,
        num_prefix_tokens=num_prefix_tokens,
    )
    return PretrainedTower(
        backbone=backbone,
        config=config,
        image_mean=tuple(settings["mean"]),
        image_std=tuple(settings["std"]),
    )


def _as_sequence(features: Tensor, model: nn.Module) -> Tensor:
    """Returns features (I, P, C) from a sequence or from a map in either order of axes."""
    if not isinstance(features, Tensor):
        raise ConfigError(
            f"a timm tower must give a map or a sequence, this one gives a "
            f"{type(features).__name__} (NaFlex does): take one for pictures of a fixed size"
        )
    if features.ndim == 3:
        return features
    if features.ndim != 4:
        raise ConfigError(f"a timm tower must give a map or a sequence, got {features.shape}")
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _num_prefix_tokens(config: AlignGPTConfig) -> int:
    """Returns how many tokens stand before the patches and are left out."""
    vision = config.vision_config
    if is_timm_tower(vision):
        return int(vision.num_prefix_tokens)
    has_class_token = vision.model_type.startswith("clip")
    return int(has_class_token and config.vision_feature_select == "patch")
