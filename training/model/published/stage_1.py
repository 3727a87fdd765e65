"""The published files of stage 1: projector and level vectors alone, in and out.

AlignGPT's `mm_projector_align.bin` has both, LLaVA's `mm_projector.bin` the projector alone. Their
names are those of the whole model, after any prefix.

Source: AlignGPT-VL/AlignGPT and haotian-liu/LLaVA, `safe_save_model_for_hf_trainer`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ConfigError
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import assemble
from training.model.processor import AlignGPTProcessor
from training.model.published.config import image_scales_of
from training.model.published.weights import load_pickled, our_name, published_name

STAGE_1_FILE = "mm_projector_align.bin"
STAGE_1_FILES = (STAGE_1_FILE, "mm_projector.bin")
"""AlignGPT's and LLaVA's."""


def find_stage_1(path: str | Path) -> Path | None:
    """Returns the stage-1 file that this is, or that lies in this folder; None without one."""
    path = Path(path)
    if path.is_file():
        return path
    return next((path / name for name in STAGE_1_FILES if (path / name).is_file()), None)


def assemble_stage_1(
    file: Path,
    language_model: str,
    *,
    vision_tower: str | None,
    alignment_mode: str | None,
    chat_template: str,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Returns a model of pretrained parts with a stage-1 file's projector and level vectors.

    Args:
        file: what `find_stage_1` found; a config.json beside it tells tower and feature choice.
        language_model: folder or name of the one that the file was trained with.
        vision_tower: by default what config.json names.
        alignment_mode: by default adaptive with level vectors, none without.
        chat_template: for a tokenizer that has none.

    Raises:
        ConfigError: the file is no stage-1 file, or of another width than the parts.
    """
    weights = read_stage_1(file)
    path = file.parent / "config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    tower = vision_tower or settings.get("mm_vision_tower")
    if tower is None:
        raise ConfigError(f"there is no config.json beside {file} to name a tower: --vision-tower")
    vectors = weights.get("level_vectors.weight")
    model, processor = assemble(
        tower,
        language_model,
        dtype="auto",
        default_chat_template=chat_template,
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select=settings.get("mm_vision_select_feature", "patch"),
        image_scales=image_scales_of(settings),
        projector_type=_projector_type(weights),
        alignment_mode=alignment_mode or ("none" if vectors is None else "adaptive"),
        num_levels=8 if vectors is None else vectors.shape[0],
        gate_reads_answer=True,
        align_after_first_token=True,
        tokenizes_by_piece=True,
    )
    put_stage_1(model, weights, file)
    return model, processor


def read_stage_1(file: str | Path) -> dict[str, Tensor]:
    """Returns the file's tensors under our names."""
    return {stage_1_name(name): weight for name, weight in load_pickled(file).items()}


def _projector_type(weights: dict[str, Tensor]) -> str:
    """Returns the projector that has these weights: of one layer, or of several and GELUs."""
    layers = {name.split(".")[2] for name in weights if re.match(r"projector\.layers\.\d+\.", name)}
    return "linear" if len(layers) == 1 else f"mlp{len(layers)}x_gelu"


def put_stage_1(
    model: AlignGPTForConditionalGeneration, ours: dict[str, Tensor], file: str | Path
) -> None:
    """Puts the projector and level vectors of a published stage-1 file into the model.

    LLaVA's `mm_projector.bin` has no level vectors.

    Args:
        ours: its tensors, as `read_stage_1` gives them.
        file: that they came from.

    Raises:
        ConfigError: the file has not the projector of this model, or other weights, or shapes.
    """
    wanted = {name for name, _ in model.named_parameters() if name.startswith("projector.")}
    known = wanted | ({"level_vectors.weight"} if model.config.has_align_token else set())
    if not wanted <= ours.keys() <= known:
        raise ConfigError(
            f"{file} must have {', '.join(sorted(known))}, but has {', '.join(sorted(ours))}"
        )
    own = model.state_dict()
    for name, weight in ours.items():
        if weight.shape != own[name].shape:
            raise ConfigError(
                f"{file} has {name} of shape {tuple(weight.shape)}, this model of "
                f"{tuple(own[name].shape)}: it was trained with another tower or language model"
            )
    model.load_state_dict(ours, strict=False)


def save_stage_1(model: AlignGPTForConditionalGeneration, file: str | Path) -> None:
    """Writes projector and level vectors as a published stage-1 file."""
    parts = ("projector.", "level_vectors.")
    state = {
        published_name(name, model.config): weight.detach().cpu().clone()
        for name, weight in model.state_dict().items()
        if name.startswith(parts)
    }
    torch.save(state, file)


def stage_1_name(name: str) -> str:
    """Returns our name of a weight whose published name may have any prefix."""
    for part in ("mm_projector.", "align_indicators."):
        if part in name:
            return our_name(name[name.index(part) :]) or name
    return name
