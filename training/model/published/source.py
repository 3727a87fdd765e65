"""Where a checkpoint of others lies, and of what kind it is: asked before anything is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download

from schemas.errors import ConfigError
from training.model.config import AlignGPTConfig

Kind = Literal["published", "llava_hf"]
"""The code of AlignGPT or LLaVA, or `LlavaForConditionalGeneration` of transformers."""

TEXT_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
SAFE_WEIGHTS, PICKLED_WEIGHTS = "*.safetensors", "*.bin"
IMPORTABLE = (
    "what can be imported: a checkpoint of the code of AlignGPT or LLaVA, or a "
    "LlavaForConditionalGeneration of transformers (llava-hf)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on this machine."""

    path: Path
    """Its folder, or the file that it is."""
    name: str
    """What it is known by: the path as given, or the hub's name and the revision."""


def find_source(name: str, revision: str | None = None) -> Source:
    """Returns where a checkpoint lies; one of the hub's is downloaded.

    Args:
        name: folder, file, or name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        ConfigError: if it is neither here nor to be had from the hub.
    """
    path = Path(name)
    if path.exists():
        return Source(path, name)
    owner, _, model = name.partition("/")
    if not owner or not model or "/" in model or owner.startswith((".", "~")):
        raise ConfigError(f"{name} does not exist: give a folder, a file, or a name on the hub")
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=[*TEXT_FILES, SAFE_WEIGHTS])
        )
        if not any(folder.glob(SAFE_WEIGHTS)):
            snapshot_download(name, revision=folder.name, allow_patterns=[PICKLED_WEIGHTS])
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} is no folder here, and the hub does not give it "
            f"({str(error).strip().splitlines()[0]}): give the folder of a checkpoint, or mend "
            "name, --revision or the connection"
        ) from error
    return Source(folder, f"{name}@{folder.name}")


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint's config.json says.

    Raises:
        ConfigError: if there is none that can be read.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds LoRA matrices alone: merge them into their model first, by the code "
            "that made them"
        )
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no published checkpoint: there is no config.json in it; {IMPORTABLE}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings by name; {IMPORTABLE}")
    return settings


def kind_of(settings: dict[str, Any], folder: Path) -> Kind:
    """Returns which code a checkpoint is of.

    Raises:
        ConfigError: if it cannot be imported; the message says what it is instead.
    """
    kind = settings.get("model_type")
    if {"config", "data"} <= settings.keys():
        raise ConfigError(
            f"{folder} is a run: its model is {folder / 'model'}, once it is finished"
        )
    if kind == AlignGPTConfig.model_type and "text_config" in settings:
        raise ConfigError(f"{folder} is a model folder already: there is nothing to import")
    if kind == "llava" and {"text_config", "vision_config"} <= settings.keys():
        return "llava_hf"
    if any(name.startswith(("mm_", "use_mm_")) for name in settings):
        return "published"
    made = " ".join(map(str, settings.get("architectures") or ()))
    if "CausalLM" in made:
        raise ConfigError(
            f"{folder} is a language model ({kind}) without a tower or projector: `aligngpt-train "
            "pretrain` makes a model of it, given as --model.language-model"
        )
    raise ConfigError(f"{folder} holds a model of the kind {kind}; {IMPORTABLE}")
