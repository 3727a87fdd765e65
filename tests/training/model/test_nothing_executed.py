"""What is loaded is never run: pickles that would, and folders that bring code along."""

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers

from schemas.errors import ConfigError
from tests.training.model.published.test_weights import write_folder
from tests.training.model.tiny_models import build_model, build_tokenizer, text_config
from training.cli import run
from training.config import ModelConfig, TrainConfig
from training.model.published.stage_1 import read_stage_1
from training.model.published.weights import load_published
from training.model.vision_tower import load_tower
from training.parts import from_parts


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_the_trap_works(tmp_path):
    torch.save(Trap(tmp_path / "mark"), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_a_stage_1_pickle_is_not_run(tmp_path):
    torch.save({"mm_projector.0.weight": Trap(tmp_path / "mark")}, tmp_path / "trap.bin")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        read_stage_1(tmp_path / "trap.bin")
    assert not (tmp_path / "mark").exists()


def test_a_published_pickle_is_not_run(tmp_path, capsys):
    folder, _ = write_folder(tmp_path, True, True, True)
    torch.save({"lm_head.weight": Trap(tmp_path / "mark")}, folder / "pytorch_model-2-of-2.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model-2-of-2\.bin holds more than tensors"):
        load_published(folder)
    assert run(["import", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "mark").exists()


def test_a_timm_pickle_is_not_run(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=False)
    (weights,) = tmp_path.glob("*.bin")
    torch.save({"cls_token": Trap(tmp_path / "mark")}, weights)
    with pytest.raises(Exception, match=r"weights_only|[Uu]npickl|Weights only"):
        load_tower(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def bring_code(folder, name, auto_map, **settings):
    """Makes a folder's JSON name a class of a module beside it, which makes a file when loaded."""
    code = f"import pathlib\npathlib.Path({str(folder / 'mark')!r}).touch()\n"
    (folder / "theirs.py").write_text(code)
    path = folder / name
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "auto_map": auto_map, **settings}))


@pytest.mark.parametrize("kind", ["llama", "theirs"])
def test_a_language_models_code_is_not_run(kind, tmp_path):
    tokenizer = build_tokenizer(True)
    tokenizer.save_pretrained(tmp_path)
    transformers.LlamaForCausalLM(text_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    code = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    bring_code(tmp_path, "config.json", code, model_type=kind)
    bring_code(tmp_path, "tokenizer_config.json", {"AutoTokenizer": [None, "theirs.Words"]})
    absent = str(tmp_path / "absent")
    config = TrainConfig(model=ModelConfig(language_model=str(tmp_path), vision_tower=absent))
    with pytest.raises(ConfigError, match="vision_tower" if kind == "llama" else "language_model"):
        from_parts(config)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["clip_vision_model", "theirs"])
def test_a_towers_code_is_not_run(kind, tmp_path):
    build_model().vision_tower.backbone.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    code = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    bring_code(tmp_path, "config.json", code, model_type=kind)
    (images,) = tmp_path.glob("*processor_config.json")
    bring_code(tmp_path, images.name, {"AutoImageProcessor": "theirs.Images"})
    if kind == "theirs":
        with pytest.raises(ValueError, match=r"custom code|remote code"):
            load_tower(str(tmp_path))
    else:
        assert load_tower(str(tmp_path)).config.model_type == kind
    assert not (tmp_path / "mark").exists()


def test_an_imported_folders_code_is_not_run(tmp_path):
    folder, _ = write_folder(tmp_path, True, True, False)
    bring_code(folder, "config.json", {"AutoConfig": "theirs.Config"})
    bring_code(folder, "tokenizer_config.json", {"AutoTokenizer": [None, "theirs.Words"]})
    load_published(folder)
    assert not (folder / "mark").exists()
