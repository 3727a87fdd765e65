"""Which image-text-to-text model is asked: its files, what tells it from another, and how it loads.

Any model of transformers' `AutoModelForImageTextToText` whose processor has a chat template.
"""

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image

from schemas.errors import ConfigError
from schemas.versions import installed_versions
from scoring.config import Precision

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What a model is loaded from; weights in pickles are not, since those could run code."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError)
"""What transformers raises over a folder that holds no such model."""


def model_folder(name: str, setting: str = "") -> Path:
    """Returns the folder of a model, a local one or a snapshot of the Hub's.

    Args:
        setting: how messages call it; by default as the signal that it is.

    Raises:
        ConfigError: if it is not to be had.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{setting or _signal(name)} is neither a folder nor a model that could be downloaded "
            f"({str(error).splitlines()[0]}): give the folder of an image-text-to-text model of "
            "transformers, or its name on the Hub"
        ) from error


def _signal(name: str) -> str:
    return f"score.signals: itm:{name}"


def itm_identity(name: str, setting: str = "") -> dict[str, str]:
    """Returns what tells the model from any other, by what its files hold.

    Args:
        setting: as for `model_folder`.

    Raises:
        ConfigError: if it is not to be had.
    """
    folder = model_folder(name, setting)
    files = sorted(path for pattern in FILES for path in folder.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(
            f"{path.name} {_file_sha256(path, stat.st_size, stat.st_mtime_ns)}\n".encode()
        )
    return {"files_sha256": digest.hexdigest()}


def itm_versions() -> dict[str, str]:
    """Returns the libraries whose version can move a likelihood within rounding."""
    return installed_versions(("torch", "transformers", "tokenizers", "pillow"))


def load_itm(
    name: str, precision: Precision, device: torch.device, setting: str = ""
) -> tuple[Any, Any]:
    """Returns the model in evaluation mode and its processor.

    Args:
        setting: as for `model_folder`.

    Raises:
        ConfigError: if there is none, or it cannot be asked.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the job shows its own
    folder = model_folder(name, setting)
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=DTYPES[precision])
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"{setting or _signal(name)} is no image-text-to-text model that transformers can "
            f"load: {error}"
        ) from error
    if getattr(processor, "chat_template", None) is None or model.config.is_encoder_decoder:
        raise ConfigError(
            f"{setting or _signal(name)} has no chat template to be asked by: give a model that "
            "answers questions about pictures in a chat"
        )
    return model.to(device).eval().requires_grad_(False), processor


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def question_about(image: bytes, text: str) -> list[dict[str, Any]]:
    """Returns a question about an encoded picture, as a chat template takes it."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def inputs_of(processor: Any, model: Any, questions: list[list[dict[str, Any]]]) -> Any:
    """Returns B questions as the model takes them, up to where its answer begins, on its device.

    Its `input_ids` are (B, T), padded on the tokenizer's side.
    """
    inputs = processor.apply_chat_template(
        questions,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    ).to(model.device)
    for name, value in inputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs
