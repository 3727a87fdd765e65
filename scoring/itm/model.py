"""Which image-text-to-text model is asked: its files, what tells it from another, and how it loads.

Any model of transformers' `AutoModelForImageTextToText` whose processor has a chat template. Code
that a model brings is run only where the user says so.
"""

import fcntl
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING_NAMES,
)

from schemas.errors import ConfigError
from schemas.versions import installed_versions
from scoring.config import Precision, ScoreConfig
from scoring.devices import claim_device, machine_lock, use_exact_arithmetic

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What a model is loaded from; weights in pickles are not, since those could run code."""

CODE = ("*.py",)
"""Of a model that brings code of its own, if the user lets it run."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError)
"""What transformers raises over a folder that holds no such model."""


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A model that is asked about pictures, as the user named it."""

    name: str
    """A folder, or a name on the Hub."""
    setting: str
    """How messages call it."""
    trust_setting: str
    """The setting that lets its own code run."""
    runs_code: bool = False
    """Whether the user lets it run."""


def model_folder(model: AskedModel) -> Path:
    """Returns the folder of a model, a local one or a snapshot of the Hub's.

    Raises:
        ConfigError: if it is not to be had.
    """
    if Path(model.name).is_dir():
        return Path(model.name)
    try:
        return Path(snapshot_download(model.name, allow_patterns=_patterns(model)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{model.setting} is neither a folder nor a model that could be downloaded "
            f"({str(error).splitlines()[0]}): give the folder of an image-text-to-text model of "
            "transformers, or its name on the Hub"
        ) from error


def _patterns(model: AskedModel) -> list[str]:
    return [*FILES, *CODE] if model.runs_code else [*FILES]


def itm_identity(model: AskedModel) -> dict[str, str]:
    """Returns what tells the model from any other, by what its files hold.

    Raises:
        ConfigError: if it is not to be had.
    """
    folder = model_folder(model)
    files = sorted(path for pattern in _patterns(model) for path in folder.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(
            f"{path.name} {_file_sha256(path, stat.st_size, stat.st_mtime_ns)}\n".encode()
        )
    runs = {"trust_remote_code": "True"} if model.runs_code else {}
    return {"files_sha256": digest.hexdigest(), **runs}


def itm_versions() -> dict[str, str]:
    """Returns the libraries whose version can move a likelihood within rounding."""
    return installed_versions(("torch", "transformers", "tokenizers", "pillow"))


def claim_itm(
    model: AskedModel, config: ScoreConfig, padding: Literal["left", "right"]
) -> tuple[Any, Any]:
    """Returns the model and its processor, on a device that is this process's.

    It fixes the number of torch's CPU threads for the whole process, as the scorer does.

    Args:
        config: device, threads, and precision, which must be settled.
        padding: the side of a batch's texts that is filled up.

    Raises:
        ConfigError: if there is no such model or device, or it cannot be asked.
    """
    device = claim_device(config.device)
    use_exact_arithmetic()
    torch.set_num_threads(config.threads)
    loaded, processor = load_itm(model, config.precision, device)
    tokenizer = processor.tokenizer
    tokenizer.padding_side = padding
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded, processor


def load_itm(model: AskedModel, precision: Precision, device: torch.device) -> tuple[Any, Any]:
    """Returns the model in evaluation mode and its processor.

    Raises:
        ConfigError: if there is none, or it cannot be asked.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the job shows its own
    folder = model_folder(model)
    # Said either way: left open, transformers would ask at the terminal.
    trust = {"trust_remote_code": model.runs_code}
    try:
        _check_code(model, folder)
        with _copies_of_code() if model.runs_code else nullcontext():
            processor = AutoProcessor.from_pretrained(folder, **trust)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=DTYPES[precision], **trust
            )
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"{model.setting} is no image-text-to-text model that transformers can load: {error}"
        ) from error
    if getattr(processor, "chat_template", None) is None or loaded.config.is_encoder_decoder:
        raise ConfigError(
            f"{model.setting} has no chat template to be asked by: give a model that answers "
            "questions about pictures in a chat"
        )
    return loaded.to(device).eval().requires_grad_(False), processor


def _check_code(model: AskedModel, folder: Path) -> None:
    """Raises `ConfigError` where a model cannot do without code of its own that is not to run."""
    named = {
        module
        for path in folder.glob("*config.json")
        for module in _code_named_in(json.loads(path.read_text(encoding="utf-8")))
    }
    elsewhere = sorted(module for module in named if "--" in module)
    if model.runs_code and elsewhere:
        raise ConfigError(
            f"{model.setting} takes its code from another repository ({elsewhere[0]}), whose files "
            "nothing here would tell from others: put the code into the model's folder"
        )
    is_known = _model_type(folder) in CONFIG_MAPPING_NAMES
    if named and not model.runs_code and not is_known:
        raise ConfigError(
            f"{model.setting} brings code of its own ({sorted(named)[0]}), which is not run "
            f"unasked: if you trust it, set {model.trust_setting}"
        )


def _code_named_in(settings: Any) -> list[str]:
    """Returns the classes that a config file takes from code beside it."""
    named = settings.get("auto_map", {}) if isinstance(settings, dict) else {}
    classes = named.values() if isinstance(named, dict) else ()
    flat = (c for one in classes for c in (one if isinstance(one, list) else [one]))
    return [one for one in flat if isinstance(one, str)]


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings.get("model_type") if isinstance(settings, dict) else None


@contextmanager
def _copies_of_code() -> Iterator[None]:
    """Lets one process of this machine at a time copy a model's code to where Python finds it.

    transformers writes those copies in place, so that another process could import half of one.
    """
    with machine_lock("code") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
