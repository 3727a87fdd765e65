"""A tiny SentencePiece model of Llama's manners, and folders that hold it as Vicuna's do."""

import io
import json
from pathlib import Path

import sentencepiece

LINES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "what is this? it is a red cat on a mat, two dogs and three birds in the blue sky",
    *[f"{before}USER ASSISTANT: {before}USER: " for before in "abcdefgh"],
]
"""`USER` inside a word makes it one piece, and two after a space, as in Llama's vocabulary."""


def sentencepiece_model() -> bytes:
    """Returns the bytes of a `tokenizer.model`: BPE with bytes for what it does not know."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=written,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def write_tokenizer(folder: Path, model: bytes, legacy: bool | None) -> None:
    """Writes a tokenizer as the published code saves it: `tokenizer.model` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    if legacy is not None:
        settings["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
