"""A CLIP model and its tokenizer from a checkpoint, in the arithmetic and layout that run fast."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import open_clip
import torch
from safetensors import SafetensorError

from schemas.errors import ConfigError
from scoring.clip.checkpoints import Checkpoint
from scoring.config import ScoreConfig
from scoring.devices import use_exact_arithmetic


def load_tokenizer(checkpoint: Checkpoint, config: ScoreConfig) -> Any:
    """Returns the tokenizer of the checkpoint's text tower.

    Raises:
        ConfigError: if it is not to be had.
    """
    try:
        return open_clip.get_tokenizer(checkpoint.model)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise ConfigError(
            f"the tokenizer of score.model {config.model!r} cannot be loaded ({error}): make it "
            "available offline, or choose a model with a tokenizer of its own"
        ) from error


LOAD_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    BadZipFile,
    SafetensorError,
)
"""What libraries raise over a file that is no checkpoint, or not one of this model."""


def load_model(
    checkpoint: Checkpoint, config: ScoreConfig, device: torch.device
) -> tuple[torch.nn.Module, str]:
    """Returns the model in evaluation mode, and open_clip's name of its arithmetic.

    open_clip's mixed precision keeps the norms in fp32, but does not know every kind of tower:
    where it fails, all weights are converted.

    Raises:
        ConfigError: if the model cannot be loaded, or does not run.
    """
    wanted = config.precision
    for name in ["fp32"] if wanted == "fp32" else [wanted, f"pure_{wanted}"]:
        try:
            model = _create_model(checkpoint, device, name)
            use_exact_arithmetic()
            torch.set_num_threads(config.threads)
            _try_out(model, checkpoint, input_dtype(name), device)
        except UnpicklingError as error:
            raise ConfigError(
                f"{checkpoint.weights} holds more than weights, as checkpoints of training do "
                "(optimizer, arguments), and is not unpickled, since that could run code: keep its "
                "state_dict alone, if you trust it, by torch.save(torch.load(FILE, "
                "weights_only=False)['state_dict'], NEW), and give NEW"
            ) from error
        except LOAD_ERRORS as error:
            failure = error
        else:
            return model, name
    raise ConfigError(
        f"score.model {config.model!r} cannot be loaded from {checkpoint.weights} in "
        f"{wanted}: {failure}"
    ) from failure


def _create_model(checkpoint: Checkpoint, device: torch.device, arithmetic: str) -> torch.nn.Module:
    """Returns the model, its weights all from the checkpoint."""
    is_schema = ":" in checkpoint.model
    model: torch.nn.Module = open_clip.create_model(
        checkpoint.model,
        None if is_schema else str(checkpoint.weights),
        precision=arithmetic,
        device=device,
        require_pretrained=True,
        force_quick_gelu=bool(checkpoint.architecture.get("quick_gelu", False)),
        text_cfg=_local_text(checkpoint),
    )
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def _try_out(
    model: torch.nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> None:
    """Runs both towers once; raises what they raise."""
    towers: Any = model
    height, width = checkpoint.preprocessing["size"]
    towers.encode_image(torch.zeros(1, 3, height, width, dtype=dtype, device=device))
    length = checkpoint.architecture["text_cfg"].get("context_length", 77)
    towers.encode_text(torch.ones(1, length, dtype=torch.int64, device=device))


def _local_text(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the text tower's settings, a folder named in them found beside the model's file."""
    text = dict(checkpoint.architecture["text_cfg"])
    name = text.get("hf_model_name")
    if name:
        text["hf_model_pretrained"] = False
        beside = (checkpoint.folder or Path()) / name
        if checkpoint.folder is not None and beside.is_dir():
            text["hf_model_name"] = str(beside)
    return text


def fast_memory_format(device: torch.device) -> torch.memory_format:
    """Returns how pictures lie in memory: by pixel on a CPU, which its convolutions are fast in.

    Source: benchmarks/score_memory.py.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def input_dtype(arithmetic: str) -> torch.dtype:
    """Returns what pixels are given to a model as."""
    dtype: torch.dtype | None = open_clip.get_input_dtype(arithmetic)
    return dtype or torch.float32
