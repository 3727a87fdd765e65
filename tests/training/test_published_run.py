"""A checkpoint of the published code, from its files to a step of training."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.training.model.published.sentencepieces import sentencepiece_model, write_tokenizer
from tests.training.model.tiny_models import text_config, vision_config
from training.cli import run
from training.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.parts import load_folder
from training.train import train


def vicuna_like(folder: Path) -> None:
    """Writes a LLaVA checkpoint whose tokenizer is `tokenizer.model` alone."""
    write_tokenizer(folder, sentencepiece_model(), None)
    words = text_config(vocab_size=420)
    torch.manual_seed(0)
    weights = dict(transformers.LlamaForCausalLM(words).state_dict())
    width = words.hidden_size
    for layer, inputs in (("0", 8), ("2", width)):
        weights[f"model.mm_projector.{layer}.weight"] = torch.randn(width, inputs)
        weights[f"model.mm_projector.{layer}.bias"] = torch.randn(width)
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors")
    transformers.CLIPVisionModel(vision_config()).save_pretrained(folder / "tower")
    transformers.CLIPImageProcessor().save_pretrained(folder / "tower")
    settings = {
        **words.to_dict(),
        "model_type": "llava_llama",
        "mm_vision_tower": str(folder / "tower"),
        "mm_projector_type": "mlp2x_gelu",
    }
    (folder / "config.json").write_text(json.dumps(settings))


# DeepSpeed 0.19.8 calls what torch 2.14 has renamed.
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_a_folder_with_tokenizer_model_alone_imports_trains_and_chats(
    conversation_dataset: str, tmp_path: Path
) -> None:
    vicuna_like(tmp_path / "theirs")
    ours, out = str(tmp_path / "ours"), tmp_path / "run"
    assert run(["import", str(tmp_path / "theirs"), "--out", ours]) == 0
    config = TrainConfig(
        model=ModelConfig(alignment_mode="none"),
        data=DataConfig(
            form="conversation",
            tokens_per_sequence=512,
            sequences_per_step=2,
            validation_ratio=0.0,
            workers=0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        parallel=ParallelConfig(precision="fp32"),
        train_parts=("projector", "language_model"),
        max_steps=1,
    )
    assert train(config, [conversation_dataset], str(out), ours)
    trained = load_folder(str(out / "model"), torch.float32)
    assert trained.model.config.tokenizes_by_piece
    assert trained.processor.tokenizer.legacy is True
    asked = load_folder(ours, torch.float32).processor
    text = "<image>\nwhat? ASSISTANT:"
    assert trained.processor._token_ids(text, True) == asked._token_ids(text, True)
    assert run(["chat", str(out / "model"), "--prompt", "what?", "--max-new-tokens", "2"]) == 0
