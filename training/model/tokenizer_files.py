"""The files of a tokenizer that transformers 5 does not write, and transformers 4 needs.

The published code loads tokenizers with `use_fast=False`: a slow one of SentencePiece wants
`tokenizer.model`, and the class that transformers 5 names is unknown to it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.inputs import ALIGN_TOKEN

SENTENCEPIECE_FILE = "tokenizer.model"
SLOW_CLASSES = {
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
}
"""The class of transformers 4 that reads `tokenizer.model`, by the type of the language model."""
PLACEHOLDERS = {IMAGE_TOKEN, ALIGN_TOKEN}
"""Ours: the published code finds `<image>` in the text, before it is tokenised."""
FAST_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers 4 that reads `tokenizer.json`, whatever `use_fast` says."""


def load_tokenizer(folder: str | Path, text_config: Any) -> Any:
    """Returns the tokenizer of a folder of transformers 4 as it was used there.

    Args:
        text_config: of the language model, for a folder that does not name the tokenizer's class.

    Raises:
        ConfigError: if its tokenizer.model is none of SentencePiece.
    """
    folder = Path(folder)
    model = folder / SENTENCEPIECE_FILE
    if model.is_file() and not (folder / "tokenizer.json").is_file():
        _check_sentencepiece(model)
    legacy = _legacy(folder)
    settings = {} if legacy is None else {"legacy": legacy}
    return AutoTokenizer.from_pretrained(
        folder, config=text_config, trust_remote_code=False, **settings
    )


def keep_legacy(tokenizer: Any) -> None:
    """Makes a tokenizer save `legacy`: it decides its tokens, and transformers 5 forgets it."""
    legacy = getattr(tokenizer, "legacy", None)
    if legacy is not None:
        tokenizer.init_kwargs["legacy"] = bool(legacy)


def _legacy(folder: Path) -> bool | None:
    """Returns whether `▁` begins what follows a special token; None for other tokenizers.

    Where nothing says it, transformers 4 took True for tokenizer.model, and transformers 5 takes
    False. tokenizer.json has it in its parts.
    """
    settings = read_json(folder / "tokenizer_config.json")
    named = str(settings.get("tokenizer_class") or SLOW_CLASSES["llama"]).removesuffix("Fast")
    if named != SLOW_CLASSES["llama"]:
        return None
    if settings.get("legacy") is not None:
        return bool(settings["legacy"])
    fast = read_json(folder / "tokenizer.json")
    if not fast:
        return True if (folder / SENTENCEPIECE_FILE).is_file() else None
    splitter = fast.get("pre_tokenizer") or {}
    if splitter.get("type") == "Metaspace":
        return splitter.get("prepend_scheme") == "always"
    return "Prepend" in json.dumps(fast.get("normalizer")) or None


def _check_sentencepiece(model: Path) -> None:
    try:
        SentencePieceProcessor().Load(str(model))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{model} is no SentencePiece model that can be read ({str(error).strip()}): copy it "
            "again from where the checkpoint came from"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the settings in a file, none where there is no file."""
    if not path.is_file():
        return {}
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def copy_sentencepiece(tokenizer: Any, folder: str | Path) -> bool:
    """Returns whether `folder` now has the `tokenizer.model` that the tokenizer was loaded with."""
    source = Path(getattr(tokenizer, "vocab_file", None) or "")
    target = Path(folder) / SENTENCEPIECE_FILE
    if (
        source.name == SENTENCEPIECE_FILE
        and source.is_file()
        and source.resolve() != target.resolve()
    ):
        shutil.copyfile(source, target)
    return target.is_file()


def save_for_transformers_4(tokenizer: Any, folder: str | Path, model_type: str) -> bool:
    """Writes the tokenizer so that transformers 4 loads it, too.

    Returns whether there is a `tokenizer.model`; without one it is loaded from `tokenizer.json`.

    Args:
        model_type: of the language model.
    """
    tokenizer.save_pretrained(folder)
    has_model = copy_sentencepiece(tokenizer, folder)
    path = Path(folder) / "tokenizer_config.json"
    settings = _old_settings(json.loads(path.read_text(encoding="utf-8")), tokenizer)
    slow_class = SLOW_CLASSES.get(model_type, FAST_CLASS)
    settings["tokenizer_class"] = slow_class if has_model else FAST_CLASS
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    _write_old_form(Path(folder) / "tokenizer.json")
    return has_model


def _old_settings(settings: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Returns a tokenizer's settings as transformers 4 has them, without our placeholders."""
    for name in ("backend", "is_local", "local_files_only", "add_prefix_space"):
        settings.pop(name, None)
    named = {settings.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    more = [t for t in settings.pop("extra_special_tokens", ()) if t not in named | PLACEHOLDERS]
    if more:
        settings["additional_special_tokens"] = more
    added = settings.get("added_tokens_decoder", {})
    kept = {number: t for number, t in added.items() if t["content"] not in PLACEHOLDERS}
    if added:
        settings["added_tokens_decoder"] = kept
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        settings["chat_template"] = template
    ids = tokenizer("a")["input_ids"]
    settings["add_bos_token"] = ids[:1] == [tokenizer.bos_token_id]
    settings["add_eos_token"] = ids[-1:] == [tokenizer.eos_token_id]
    return settings


def _write_old_form(path: Path) -> None:
    """Writes a fast tokenizer without our placeholders, in a form that old ones read, too.

    Pairs `["a", "b"]` that are merged become `"a b"`, where no word has a space in it.
    """
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    added = settings.get("added_tokens") or []
    words = settings["model"].get("vocab") or {}
    ours = PLACEHOLDERS - set(words if isinstance(words, dict) else (word for word, _ in words))
    settings["added_tokens"] = [token for token in added if token["content"] not in ours]
    pairs = settings["model"].get("merges") or []
    if not any(isinstance(pair, str) or " " in "".join(pair) for pair in pairs):
        settings["model"]["merges"] = [" ".join(pair) for pair in pairs]
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
