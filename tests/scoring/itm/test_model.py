import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from schemas.errors import ConfigError
from scoring.itm.model import AskedModel, itm_identity, load_itm
from tests.tiny_itm import write_tiny_itm

CPU = torch.device("cpu")
CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration


class OwnConfig(LlavaConfig):
    model_type = "tiny_own"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_itm(tmp_path_factory.mktemp("itm") / "tiny")


def asked(name, runs_code=False):
    return AskedModel(str(name), f"the model {name}", "the.trust_setting", runs_code=runs_code)


def with_code(folder, out, prefix="", model_type="tiny_own"):
    """Returns a copy of a model whose classes are in code of its own."""
    shutil.copytree(folder, out)
    (out / "tiny_code.py").write_text(CODE)
    values = json.loads((out / "config.json").read_text())
    names = {"AutoConfig": "OwnConfig", "AutoModelForImageTextToText": "OwnModel"}
    values["auto_map"] = {auto: f"{prefix}tiny_code.{name}" for auto, name in names.items()}
    values["model_type"] = model_type
    (out / "config.json").write_text(json.dumps(values))
    return out


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Keeps the copies of code, and what Python knows of them, to the test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {name for name in sys.modules if name.startswith("transformers_modules")}
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        if name not in known:
            del sys.modules[name]


def test_a_model_is_told_from_others_by_what_its_files_hold(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert itm_identity(asked(copy)) == itm_identity(asked(folder))
    (copy / "README.md").write_text("of no matter")
    (copy / "code.py").write_text("not_run = True")
    assert itm_identity(asked(copy)) == itm_identity(asked(folder))
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert itm_identity(asked(copy)) != itm_identity(asked(folder))


def test_what_is_no_such_model_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="is neither a folder nor a model that could be"):
        itm_identity(asked("no/such/model"))
    with pytest.raises(ConfigError, match="is no image-text-to-text model"):
        load_itm(asked(tmp_path), "fp32", CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no image-text-to-text model"):
        load_itm(asked(tmp_path), "fp32", CPU)
    mute = tmp_path / "mute"
    shutil.copytree(folder, mute)
    Path(mute / "chat_template.jinja").unlink()
    for path in mute.glob("*config.json"):
        values = json.loads(path.read_text())
        values.pop("chat_template", None)
        path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="has no chat template"):
        load_itm(asked(mute), "fp32", CPU)


def test_code_that_a_model_brings_runs_only_if_the_user_says_so(folder, tmp_path, own_modules):
    own = with_code(folder, tmp_path / "own")
    with pytest.raises(ConfigError, match=r"brings code of its own .*set the\.trust_setting"):
        load_itm(asked(own), "fp32", CPU)
    assert not (tmp_path / "modules").exists()
    model, _ = load_itm(asked(own, runs_code=True), "fp32", CPU)
    assert type(model).__name__ == "OwnModel"
    elsewhere = with_code(folder, tmp_path / "elsewhere", prefix="some/repository--")
    with pytest.raises(ConfigError, match="takes its code from another repository"):
        load_itm(asked(elsewhere, runs_code=True), "fp32", CPU)


def test_a_model_that_transformers_knows_does_without_the_code_beside_it(folder, tmp_path):
    known = with_code(folder, tmp_path / "known", model_type="llava")
    model, _ = load_itm(asked(known), "fp32", CPU)
    assert type(model).__name__ == "LlavaForConditionalGeneration"


def test_code_that_runs_is_part_of_what_a_model_is(folder, tmp_path):
    own = asked(with_code(folder, tmp_path / "own"), runs_code=True)
    before = itm_identity(own)
    assert before["trust_remote_code"] == "True"
    assert before["files_sha256"] != itm_identity(replace(own, runs_code=False))["files_sha256"]
    (tmp_path / "own" / "tiny_code.py").write_text(CODE + "# another\n")
    assert itm_identity(own) != before
