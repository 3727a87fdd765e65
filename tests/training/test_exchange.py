import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from schemas.errors import ConfigError
from tests.training.model.tiny_models import IMAGE_SIZE, build_model, build_tokenizer, text_config
from training.cli import run
from training.config import AlignmentMode, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.data.conversations import VICUNA_V1
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor
from training.model.published.code_folder import save_with_code
from training.parts import from_folder, from_parts, load_folder


def model_folder(
    parts: dict[str, str],
    folder: Path,
    mode: AlignmentMode,
    dtype: torch.dtype = torch.bfloat16,
) -> str:
    config = TrainConfig(
        model=ModelConfig(**parts, alignment_mode=mode, num_levels=4, attention="eager"),
        parallel=ParallelConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    assembled = from_parts(config)
    assembled.model.to(dtype).save_pretrained(folder)
    assembled.processor.save_pretrained(folder)
    return str(folder)


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load_folder(str(folder), "auto").model.state_dict())


@pytest.mark.parametrize(
    ("mode", "form", "dtype"),
    [
        ("adaptive", "aligngpt", torch.bfloat16),
        ("local", "aligngpt", torch.float16),
        ("none", "llava", torch.float32),
    ],
)
def test_what_is_exported_and_imported_again_is_the_same_model(
    tiny_parts: dict[str, str], tmp_path: Path, mode: Any, form: str, dtype: torch.dtype
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", mode, dtype)
    theirs, back = str(tmp_path / "theirs"), str(tmp_path / "back")
    tower = ["--vision-tower", tiny_parts["vision_tower"]]
    assert run(["export", ours, "--out", theirs, "--format", form, *tower]) == 0
    assert run(["import", theirs, "--out", back]) == 0
    before, after = weights_of(ours), weights_of(back)
    assert before.keys() == after.keys()
    stored = [load_file(path) for path in Path(theirs).glob("*.safetensors")]
    assert {w.dtype for w in [*before.values(), *after.values(), *stored[0].values()]} == {dtype}
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


def test_a_folder_of_others_beside_the_new_one_stays_and_an_empty_one_is_taken(
    tiny_parts: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "adaptive")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    mine = tmp_path / ".here.tmp"
    mine.mkdir()
    assert run(["export", ours, "--out", ".", "--format", "stage_1"]) == 2
    assert "remove it, or choose another --out" in capsys.readouterr().err
    assert mine.is_dir()
    mine.rmdir()
    assert run(["export", ours, "--out", ".", "--format", "stage_1"]) == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["mm_projector_align.bin"]
    assert not mine.exists()
    assert run(["import", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    (tmp_path / "file").write_text("mine")
    assert run(["export", ours, "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def without_template(folder: str) -> str:
    """Takes the chat template out of a folder, as Vicuna's tokenizer has none."""
    for path in Path(folder).glob("chat_template*"):
        path.unlink()
    settings = Path(folder) / "tokenizer_config.json"
    named = json.loads(settings.read_text())
    named.pop("chat_template", None)
    settings.write_text(json.dumps(named))
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


def test_the_sentencepiece_model_of_a_tokenizer_goes_along(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    words = tmp_path / "words"
    shutil.copytree(tiny_parts["language_model"], words)
    (words / "tokenizer.model").write_bytes(b"pieces")
    parts = {**tiny_parts, "language_model": str(words)}
    ours = model_folder(parts, tmp_path / "ours", "adaptive")
    shutil.rmtree(words)
    theirs, back = str(tmp_path / "theirs"), str(tmp_path / "back")
    tower = ["--vision-tower", tiny_parts["vision_tower"]]
    assert run(["export", ours, "--out", theirs, *tower]) == 0
    assert run(["import", theirs, "--out", back]) == 0
    for folder in (ours, theirs, back):
        assert (Path(folder) / "tokenizer.model").read_bytes() == b"pieces"
    settings = json.loads((Path(theirs) / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "LlamaTokenizer"


def test_a_tokenizer_without_a_sentencepiece_model_is_named_as_fast_and_said_to_be(
    tiny_parts: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = model_folder(tiny_parts, tmp_path / "ours", "adaptive"), tmp_path / "theirs"
    assert run(["export", ours, "--out", str(theirs)]) == 0
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    merges = json.loads((theirs / "tokenizer.json").read_text())["model"]["merges"]
    assert merges and all(isinstance(merge, str) for merge in merges)
    assert "without tokenizer.model" in caplog.text
    text = "what is this? a cat"
    kind = transformers.PreTrainedTokenizerFast
    ids = [kind.from_pretrained(folder)(text)["input_ids"] for folder in (ours, theirs)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("names_file", [True, False])
def test_a_stage_1_file_becomes_a_model_to_finetune(
    tiny_parts: dict[str, str], tmp_path: Path, names_file: bool
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "adaptive", torch.float32)
    theirs, back = tmp_path / "theirs", str(tmp_path / "back")
    assert run(["export", ours, "--out", str(theirs), "--format", "stage_1"]) == 0
    settings = {"mm_vision_tower": tiny_parts["vision_tower"], "mm_vision_select_layer": -1}
    (theirs / "config.json").write_text(json.dumps(settings))
    source = str(theirs / "mm_projector_align.bin" if names_file else theirs)
    words = ["--language-model", tiny_parts["language_model"]]
    assert run(["import", source, "--out", back, *words]) == 0
    before, after = weights_of(ours), weights_of(back)
    assert before.keys() == after.keys()
    kept = [name for name in before if not name.startswith("gate.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    config = load_folder(back, "auto").model.config
    assert (config.alignment_mode, config.num_levels) == ("adaptive", 4)
    assert (config.projector_type, config.vision_feature_layer) == ("mlp2x_gelu", -1)


def test_llavas_projector_alone_becomes_a_model_without_alignment(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    theirs, back = tmp_path / "mm_projector.bin", str(tmp_path / "back")
    torch.save({"model.mm_projector.weight": torch.ones(32, 32),
                "model.mm_projector.bias": torch.zeros(32)}, theirs)  # fmt: skip
    parts = ["--language-model", tiny_parts["language_model"]]
    parts += ["--vision-tower", tiny_parts["vision_tower"]]
    assert run(["import", str(theirs), "--out", back, *parts]) == 0
    model = load_folder(back, "auto").model
    assert (model.config.alignment_mode, model.config.projector_type) == ("none", "linear")
    assert torch.equal(model.projector.layers[0].weight, torch.ones(32, 32))


def test_a_stage_1_file_without_its_parts_is_refused(
    tiny_parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"mm_projector.weight": torch.ones(2, 2)}, tmp_path / "mm_projector.bin")
    out, words = str(tmp_path / "out"), ["--language-model", tiny_parts["language_model"]]
    asked: list[tuple[list[str], str]] = [
        ([str(tmp_path)], "as --language-model"),
        ([str(tmp_path), *words], "to name a tower"),
        ([tiny_parts["language_model"], *words], "has none of"),
    ]
    for arguments, message in asked:
        assert run(["import", *arguments, "--out", out]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


TEXTS = (".json", ".md", ".jinja", ".py")
OPEN = """
import sys, torch, transformers
from PIL import Image
given = {"trust_remote_code": True}
for folder, out in zip(sys.argv[1::2], sys.argv[2::2]):
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype="float32", device_map="cpu", **given)
    processor = transformers.AutoProcessor.from_pretrained(folder, **given)
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text="<image>what is this?")
    with torch.no_grad():
        torch.save(model(**inputs).logits, out)
    words = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    said = model.generate(**processor.apply_chat_template(
        [words], tokenize=True, return_dict=True, add_generation_prompt=True), max_new_tokens=2)
assert not {"training", "schemas"} & set(sys.modules)
"""


def check_no_place_of_this_machine(folder: Path, place: Path) -> None:
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.suffix in TEXTS}
    assert "config.json" in texts
    assert [name for name, text in texts.items() if str(place) in text] == []


def logits_of(model: Any, processor: Any) -> torch.Tensor:
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text="<image>what is this?")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def opened_elsewhere(tmp_path: Path, *folders: Path) -> list[torch.Tensor]:
    """Returns the logits of models that a process without ours opens."""
    files = [tmp_path / f"logits_{number}.pt" for number in range(len(folders))]
    pairs = [str(path) for pair in zip(folders, files, strict=True) for path in pair]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", "-c", OPEN, *pairs]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    return [torch.load(file, weights_only=True) for file in files]


def timm_parts() -> tuple[Any, AlignGPTProcessor]:
    """Returns a tiny model whose tower is timm's, and its processor."""
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(image_size=IMAGE_SIZE),
        tokenizer=build_tokenizer(True),
        num_image_tokens=16,
    )
    places = processor.placeholders
    model = build_model(
        vision="timm",
        text_config=text_config(vocab_size=300),
        image_token_id=places.image_token_id,
        align_token_id=places.align_token_id,
        leading_bos_token_id=places.bos_token_id,
    )
    return model, processor


@pytest.mark.slow
def test_a_folder_with_its_code_opens_where_ours_is_not_installed(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    run_folder, old = tmp_path / "my_run", tmp_path / "old"
    old.mkdir()
    (old / "manifest.json").write_text('{"schema_version": 1}')
    ours = model_folder(tiny_parts, run_folder / "model", "adaptive", torch.float32)
    (run_folder / "config.json").write_text(
        json.dumps({"config": {"max_steps": 7}, "data": ["/nowhere/pairs", str(old)], "init": None})
    )
    (run_folder / "metrics.jsonl").write_text('{"step": 7, "validation/loss": 1.25}\n')
    out, timms = tmp_path / "out", tmp_path / "timms"
    assert run(["export", ours, "--out", str(out), "--to", "hf"]) == 0
    model, processor = timm_parts()
    timms.mkdir()
    save_with_code(model, processor, timms)
    found, of_timm = opened_elsewhere(tmp_path, out, timms)
    parts = load_folder(ours, torch.float32)
    assert torch.allclose(found, logits_of(parts.model, parts.processor), atol=1e-5)
    assert torch.allclose(of_timm, logits_of(model, processor), atol=1e-5)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n") and "license: unknown" in card.split("---")[1]
    for said in (
        "# my_run",
        '"max_steps": 7',
        "validation/loss | 1.25",
        "`pairs`",
        "another version",
    ):
        assert said in card
    assert "/nowhere" not in card
    check_no_place_of_this_machine(out, tmp_path.parent)


def test_a_model_of_one_vector_becomes_llavas(
    tiny_parts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = model_folder(tiny_parts, tmp_path / "ours", "average")
    out = tmp_path / "out"
    assert run(["export", ours, "--out", str(out), "--to", "llava_hf"]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava"
    check_no_place_of_this_machine(out, tmp_path.parent)
    assert "LlavaForConditionalGeneration" in (out / "README.md").read_text()
    adaptive = model_folder(tiny_parts, tmp_path / "adaptive", "adaptive")
    assert run(["export", adaptive, "--out", str(tmp_path / "no"), "--to", "llava_hf"]) == 2
    assert "use --to hf" in capsys.readouterr().err.replace("\n", " ")
