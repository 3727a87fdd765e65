import json
import shutil
from pathlib import Path

import pytest
import torch

from schemas.errors import ConfigError
from scoring.itm.model import itm_identity, load_itm
from tests.tiny_itm import write_tiny_itm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_itm(tmp_path_factory.mktemp("itm") / "tiny")


def test_a_model_is_told_from_others_by_what_its_files_hold(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert itm_identity(str(copy)) == itm_identity(folder)
    (copy / "README.md").write_text("of no matter")
    assert itm_identity(str(copy)) == itm_identity(folder)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert itm_identity(str(copy)) != itm_identity(folder)


def test_what_is_no_such_model_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="is neither a folder nor a model that could be"):
        itm_identity("no/such/model")
    with pytest.raises(ConfigError, match="is no image-text-to-text model"):
        load_itm(str(tmp_path), "fp32", torch.device("cpu"))
    mute = tmp_path / "mute"
    shutil.copytree(folder, mute)
    Path(mute / "chat_template.jinja").unlink()
    for path in mute.glob("*config.json"):
        values = json.loads(path.read_text())
        values.pop("chat_template", None)
        path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="has no chat template"):
        load_itm(str(mute), "fp32", torch.device("cpu"))
