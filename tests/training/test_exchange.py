from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from training.cli import run
from training.config import AlignmentMode, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.data.conversations import VICUNA_V1
from training.parts import from_folder, from_parts, load_folder


def model_folder(parts: dict[str, str], folder: Path, mode: AlignmentMode) -> str:
    config = TrainConfig(
        model=ModelConfig(**parts, alignment_mode=mode, num_levels=4, attention="eager"),
        parallel=ParallelConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    assembled = from_parts(config)
    assembled.model.bfloat16().save_pretrained(folder)
    assembled.processor.save_pretrained(folder)
    return str(folder)


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load_folder(str(folder), torch.bfloat16).model.state_dict())


@pytest.mark.parametrize(("mode", "form"), [("adaptive", "aligngpt"), ("none", "llava")])
def test_what_is_exported_and_imported_again_is_the_same_model(
    tiny_parts: dict[str, str], tmp_path: Path, mode: Any, form: str
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", mode)
    theirs, back = str(tmp_path / "theirs"), str(tmp_path / "back")
    tower = ["--vision-tower", tiny_parts["vision_tower"]]
    assert run(["export", ours, "--out", theirs, "--format", form, *tower]) == 0
    assert run(["import", theirs, "--out", back]) == 0
    before, after = weights_of(ours), weights_of(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_folder(back, torch.bfloat16).model.config.alignment_mode == mode


def test_a_stage_1_file_has_the_published_names(tiny_parts: dict[str, str], tmp_path: Path) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "adaptive")
    assert run(["export", ours, "--out", str(tmp_path / "out"), "--format", "stage_1"]) == 0
    weights = torch.load(tmp_path / "out" / "mm_projector_align.bin", weights_only=True)
    ends = {name.removeprefix("model.") for name in weights}
    assert "align_indicators.indicator_embs" in ends
    assert {name for name in ends if "mm_projector.0" in name} == {
        "mm_projector.0.weight",
        "mm_projector.0.bias",
    }


def test_llava_is_refused_a_model_with_alignment_and_a_full_folder_is_left_alone(
    tiny_parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "adaptive")
    assert run(["export", ours, "--out", str(tmp_path / "out"), "--format", "llava"]) == 2
    assert "alignment_mode" in capsys.readouterr().err
    assert run(["export", ours, "--out", ours]) == 2
    assert "not empty" in capsys.readouterr().err.replace("\n", " ")
    assert run(["import", str(tmp_path), "--out", str(tmp_path / "new")]) == 2


def without_template(folder: str) -> str:
    """Takes the chat template out of a folder, as Vicuna's tokenizer has none."""
    for path in Path(folder).glob("chat_template*"):
        path.unlink()
    return folder


def test_an_imported_model_without_a_chat_template_chats_as_vicuna(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "adaptive")
    theirs, back = str(tmp_path / "theirs"), str(tmp_path / "back")
    tower = ["--vision-tower", tiny_parts["vision_tower"]]
    assert run(["export", ours, "--out", theirs, *tower]) == 0
    assert run(["import", without_template(theirs), "--out", back]) == 0
    processor: Any = load_folder(back, torch.float32).processor
    # this tokenizer starts no text with BOS, so the template must not either
    assert processor.chat_template == VICUNA_V1.removeprefix("{{ bos_token }}")
    assert run(["chat", back, "--prompt", "what is this?", "--max-new-tokens", "2"]) == 0


def test_a_folder_without_a_chat_template_is_refused_unless_one_is_set(
    tiny_parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = without_template(model_folder(tiny_parts, tmp_path / "ours", "adaptive"))
    assert run(["chat", ours, "--prompt", "what is this?"]) == 2
    assert "no chat template" in capsys.readouterr().err.replace("\n", " ")
    data = DataConfig(form="conversation")
    parallel = ParallelConfig(precision="fp32")
    plain = TrainConfig(model=ModelConfig(num_levels=4), data=data, parallel=parallel)
    with pytest.raises(ConfigError, match=r"--model\.chat-template vicuna_v1"):
        from_folder(ours, plain).encoder(data)
    vicuna = ModelConfig(num_levels=4, chat_template="vicuna_v1")
    parts = from_folder(ours, TrainConfig(model=vicuna, data=data, parallel=parallel))
    tokenizer: Any = parts.processor.tokenizer
    assert parts.encoder(data).tokenizer.chat_template == VICUNA_V1
    assert parts.model.config.leading_bos_token_id == tokenizer.bos_token_id
    assert parts.model.config.placeholders == parts.processor.placeholders
