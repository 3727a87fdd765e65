"""The files of a tokenizer that transformers 5 does not write, and transformers 4 needs.

The published code loads tokenizers with `use_fast=False`: a slow one of SentencePiece wants
`tokenizer.model`, and the class that transformers 5 names is unknown to it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

SENTENCEPIECE_FILE = "tokenizer.model"
SLOW_CLASSES = {
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
}
"""The class of transformers 4 that reads `tokenizer.model`, by the type of the language model."""
FAST_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers 4 that reads `tokenizer.json`, whatever `use_fast` says."""


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
    settings = json.loads(path.read_text(encoding="utf-8"))
    slow_class = SLOW_CLASSES.get(model_type, FAST_CLASS)
    settings["tokenizer_class"] = slow_class if has_model else FAST_CLASS
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        settings["chat_template"] = template
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    _write_merges_as_words(Path(folder) / "tokenizer.json")
    return has_model


def _write_merges_as_words(path: Path) -> None:
    """Writes pairs `["a", "b"]` that are merged as `"a b"`, which old and new tokenizers read."""
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    pairs = settings["model"].get("merges") or []
    if any(isinstance(pair, str) or " " in "".join(pair) for pair in pairs):
        return
    settings["model"]["merges"] = [" ".join(pair) for pair in pairs]
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
