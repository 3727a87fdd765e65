"""Which weights, architecture and preprocessing a score configuration names, and their identity."""

import difflib
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import (
    _find_checkpoint_in_dir,
    download_pretrained_from_hf,
    get_model_config,
    parse_model_name,
)
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from schemas.errors import ConfigError
from schemas.versions import installed_versions
from scoring.config import ScoreConfig

ModelIdentity = dict[str, str]
"""What a score can be reproduced from; stored beside the scores and in the manifest."""

LIBRARIES = (
    "open_clip_torch",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "pillow",
    "numpy",
)
"""Whose version can move a score, within rounding."""


OF_THE_RUN = ("device", "arithmetic", "memory_format", "folded_norms", "packed_linears")
"""What an identity says of how a model ran, which moves a score within rounding, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as open_clip names it, with the files it comes from."""

    model: str
    """The name that open_clip's functions take."""
    label: str
    """The name for people, without folders: the same on every machine."""
    pretrained: str
    """The checkpoint's tag, or the name of a file that has none."""
    weights: Path
    architecture: dict[str, Any]
    """open_clip's model configuration, with the activation that the checkpoint was trained with."""
    preprocessing: dict[str, Any]
    """Fields of open_clip's `PreprocessCfg`."""
    folder: Path | None
    """Where the architecture's relative paths start, for local models."""


def resolve_checkpoint(config: ScoreConfig) -> Checkpoint:
    """Returns the model that a configuration names; downloads its weights if they are not there.

    Raises:
        ConfigError: if there is no such model, checkpoint or file.
    """
    schema, name = parse_model_name(config.model)
    if schema == "local-dir":
        return _from_folder(Path(name))
    if schema == "hf-hub":
        return _from_hub(config.model, name)
    if config.model.endswith(".json"):
        return _from_registry(config, _register(Path(config.model)), Path(config.model).parent)
    return _from_registry(config, name.replace("/", "-"), None)


def _register(path: Path) -> str:
    """Returns the name under which open_clip knows the model configuration in a file."""
    if not path.is_file():
        raise ConfigError(
            f"score.model {path} is not a file: give the path of an open_clip model configuration"
        )
    _read_json(path, "embed_dim")
    open_clip.add_model_config(path)
    return path.stem


def refuse_unknown_model(config: ScoreConfig) -> None:
    """Raises `ConfigError` if open_clip has no model or checkpoint so called; downloads nothing."""
    schema, name = parse_model_name(config.model)
    if schema not in ("local-dir", "hf-hub") and not config.model.endswith(".json"):
        _known(config, name.replace("/", "-"))


def _known(config: ScoreConfig, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the architecture of a model of the registry, and its checkpoint's settings if any."""
    architecture = get_model_config(model)
    if architecture is None:
        raise ConfigError(
            f"score.model {config.model!r} is no model of open_clip {open_clip.__version__}; "
            f"{_near(model, open_clip.list_models())}. Or give local-dir:FOLDER, or the path of "
            "a model configuration (.json)"
        )
    tag = config.pretrained.partition(":")[0]
    settings = get_pretrained_cfg(model, tag)
    if not settings and not Path(config.pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(
            f"score.pretrained {config.pretrained!r} is neither a file nor a checkpoint of "
            f"{model}; {_near(tag, tags)}"
        )
    return architecture, settings


def _from_registry(config: ScoreConfig, model: str, folder: Path | None) -> Checkpoint:
    architecture, settings = _known(config, model)
    tag, _, file = config.pretrained.partition(":")
    if settings:
        weights = _given(tag, file) if file else _published(model, tag, settings)
    else:
        weights = Path(config.pretrained)
        _warn_of_other_settings(model, weights)
    architecture, preprocessing = _with_settings(architecture, settings)
    return Checkpoint(
        model=model,
        label=model,
        pretrained=tag if settings else weights.name,
        weights=weights,
        architecture=architecture,
        preprocessing=preprocessing,
        folder=folder,
    )


def _given(tag: str, file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(
            f"score.pretrained {tag}:{file}: there is no file {file}; it is read as TAG:FILE, "
            f"and {tag} alone downloads the weights"
        )
    return Path(file)


def _published(model: str, tag: str, settings: dict[str, Any]) -> Path:
    return _downloaded(
        lambda: download_pretrained(settings),
        f"{model} {tag}",
        f"download them elsewhere and set score.pretrained to {tag}:FILE with the path of the file",
    )


def _with_settings(
    architecture: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a model's architecture and preprocessing under the settings of a checkpoint.

    Args:
        settings: what open_clip says of the checkpoint's tag; none for a file of its own.
    """
    if settings:
        quick_gelu = needs_quick_gelu(architecture, settings)
        architecture = {**architecture, "quick_gelu": quick_gelu}
    return architecture, _preprocessing(architecture, settings)


def _warn_of_other_settings(model: str, weights: Path) -> None:
    """Warns where a file without a tag may be of a checkpoint that needs other settings."""
    architecture = get_model_config(model)
    plain = {"quick_gelu": False, **architecture}, _preprocessing(architecture, {})
    others = [
        tag
        for tag in open_clip.list_pretrained_tags_by_model(model)
        if _with_settings(architecture, get_pretrained_cfg(model, tag)) != plain
    ]
    if others:
        warnings.warn(
            f"score.pretrained {weights} is used with {model}'s plain activation and "
            f"preprocessing, but {', '.join(others)} need others: if the file is one of these or "
            f"was trained from one, set score.pretrained to TAG:FILE, as in {others[0]}:{weights}",
            stacklevel=2,
        )


def needs_quick_gelu(architecture: dict[str, Any], tag: dict[str, Any]) -> bool:
    """Returns whether a checkpoint computes QuickGELU, as OpenAI's and some others do.

    open_clip only warns where the model's plain name says otherwise, and scores wrongly.
    """
    return bool(architecture.get("quick_gelu", False) or tag.get("quick_gelu", False))


def _from_folder(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise ConfigError(f"score.model local-dir:{folder}: there is no such folder")
    values = _read_json(folder / "open_clip_config.json", "model_cfg")
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        raise ConfigError(
            f"score.model local-dir:{folder} holds no weights: open_clip looks for files named "
            "*.safetensors, *.bin or *.pth"
        )
    weights = Path(found)
    return Checkpoint(
        model=f"local-dir:{folder}",
        label=f"local-dir:{folder.resolve().name}",
        pretrained=weights.name,
        weights=weights,
        architecture=values["model_cfg"],
        preprocessing=_preprocessing(values["model_cfg"], values.get("preprocess_cfg", {})),
        folder=folder,
    )


def _from_hub(model: str, repository: str) -> Checkpoint:
    remedy = "download the repository elsewhere and set score.model to local-dir:FOLDER"
    config_file = _downloaded(
        lambda: download_pretrained_from_hf(repository, filename="open_clip_config.json"),
        model,
        remedy,
    )
    values = _read_json(config_file, "model_cfg")
    weights = _downloaded(lambda: download_pretrained_from_hf(repository), model, remedy)
    return Checkpoint(
        model=model,
        label=model,
        pretrained=weights.name,
        weights=weights,
        architecture=values["model_cfg"],
        preprocessing=_preprocessing(values["model_cfg"], values.get("preprocess_cfg", {})),
        folder=None,
    )


def _downloaded(download: Callable[[], str], name: str, remedy: str) -> Path:
    try:
        return Path(download())
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the weights of {name} could not be downloaded ({error}): check the network, "
            f"or {remedy}"
        ) from error


def _read_json(path: Path, required: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as an open_clip configuration: {error}"
        ) from error
    if not isinstance(values, dict) or required not in values:
        raise ConfigError(f"{path} is no open_clip configuration: {required!r} is missing in it")
    return values


def _preprocessing(architecture: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Returns the preprocessing as open_clip derives it when it builds the model."""
    merged: dict[str, Any] = merge_preprocess_dict(PreprocessCfg(), overlay)
    size = architecture["vision_cfg"].get("image_size", 224)
    merged["size"] = (size, size) if isinstance(size, int) else tuple(size)
    return asdict(PreprocessCfg(**merged))


def _near(name: str, known: list[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.4)
    if near:
        return "near names are " + ", ".join(by_lower[other] for other in near)
    return "known are " + ", ".join(known) if known else "it has no published checkpoint"


def identify(checkpoint: Checkpoint, config: ScoreConfig, tokens: bytes) -> ModelIdentity:
    """Returns what makes the scores of a model what they are, the same on every machine.

    Args:
        tokens: what the model's tokenizer makes of `PROBE_CAPTIONS`, as bytes.
    """
    stat = checkpoint.weights.stat()
    return {
        "model": checkpoint.label,
        "pretrained": checkpoint.pretrained,
        "weights_sha256": _file_sha256(checkpoint.weights, stat.st_size, stat.st_mtime_ns),
        "architecture_sha256": _json_sha256(_without_folders(checkpoint.architecture)),
        "tokenizer_sha256": hashlib.sha256(tokens).hexdigest(),
        "embedding_width": str(checkpoint.architecture["embed_dim"]),
        "preprocessing": json.dumps(checkpoint.preprocessing, sort_keys=True),
        "prompt_template": config.prompt_template,
        "precision": config.precision,
        **{f"version.{name}": found for name, found in installed_versions(LIBRARIES).items()},
    }


def deciding_identity(identity: ModelIdentity) -> ModelIdentity:
    """Returns the identity without the libraries' versions and the processor.

    They move a score within rounding only, so that a job goes on with what stands; they are
    recorded beside every shard.
    """
    return {
        name: value
        for name, value in identity.items()
        if not name.startswith("version.") and name not in OF_THE_RUN
    }


@lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _without_folders(values: Any) -> Any:
    """Returns the values with absolute paths cut down to their last part."""
    if isinstance(values, dict):
        return {name: _without_folders(value) for name, value in values.items()}
    if isinstance(values, str) and Path(values).is_absolute():
        return Path(values).name
    return values
