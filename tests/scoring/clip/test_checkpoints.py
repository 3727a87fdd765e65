import argparse
import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError
from scoring.clip import checkpoints
from scoring.clip.checkpoints import Checkpoint, identify, resolve_checkpoint
from scoring.clip.scorer import ClipScorer
from scoring.config import ScoreConfig

PUBLISHED = [
    ("ViT-L-14", "openai", True, {"resize_mode": "shortest", "interpolation": "bicubic"}),
    ("ViT-B-16-SigLIP", "webli", False, {"resize_mode": "squash", "mean": (0.5, 0.5, 0.5)}),
    ("MobileCLIP-S1", "datacompdr", False, {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0)}),
]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Returns a file that stands for weights, whose content resolving does not look at."""
    file = tmp_path / "downloaded.bin"
    file.write_bytes(b"weights")
    return file


def resolve(model: str, pretrained: str) -> Checkpoint:
    return resolve_checkpoint(ScoreConfig(model=model, pretrained=pretrained))


@pytest.mark.parametrize(("model", "tag", "quick_gelu", "settings"), PUBLISHED)
def test_file_given_with_a_tag_is_used_as_the_tags_own_weights(
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    tag: str,
    quick_gelu: bool,
    settings: dict[str, Any],
) -> None:
    found = resolve(model, f"{tag}:{weights}")
    monkeypatch.setattr(checkpoints, "download_pretrained", lambda _: str(weights))
    assert found == resolve(model, tag)
    assert found.weights == weights and found.pretrained == tag
    assert found.architecture["quick_gelu"] is quick_gelu
    assert {name: found.preprocessing[name] for name in settings} == settings


def test_identity_of_a_file_given_with_a_tag_names_the_tag_and_hashes_the_file(
    weights: Path,
) -> None:
    config = ScoreConfig(model="ViT-L-14", pretrained=f"openai:{weights}")
    identity = identify(resolve_checkpoint(config), config, b"")
    assert identity["pretrained"] == "openai"
    assert identity["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_weights_that_cannot_be_downloaded_can_be_given_as_the_error_says(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(checkpoints, "download_pretrained", fail)
    with pytest.raises(ConfigError, match=r"no network.*set score\.pretrained to openai:FILE"):
        resolve("ViT-L-14", "openai")
    assert resolve("ViT-L-14", f"openai:{weights}").weights == weights


def test_tag_with_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.pt; it is read as TAG:FILE"):
        resolve("ViT-L-14", f"openai:{tmp_path}/none.pt")
    with pytest.raises(ConfigError, match=r"near names are openai"):
        resolve("ViT-L-14", f"opnai:{tmp_path}/none.pt")


@pytest.mark.parametrize(("model", "tag"), [row[:2] for row in PUBLISHED])
def test_file_alone_is_warned_of_where_checkpoints_of_the_model_need_other_settings(
    weights: Path, model: str, tag: str
) -> None:
    with pytest.warns(UserWarning, match=f"TAG:FILE, as in {tag}:{weights}"):
        found = resolve(model, str(weights))
    assert not found.architecture.get("quick_gelu", False)
    assert found.preprocessing["resize_mode"] == "shortest"


def test_file_alone_is_not_warned_of_where_all_checkpoints_have_the_plain_settings(
    weights: Path,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("ViT-L-14-quickgelu", str(weights)).architecture["quick_gelu"] is True


@pytest.mark.parametrize("kind", ["epoch", "arguments", "empty", "text", "cut", "list"])
def test_a_file_that_is_no_plain_state_dict_is_one_sentence(kind, tiny_clip, tmp_path):
    path = tmp_path / "epoch_1.pt"
    whole = torch.load(tiny_clip.weights, weights_only=True)
    contents = {
        "epoch": {"epoch": 1, "state_dict": whole, "optimizer": {"lr": np.float64(0.1)}},
        "arguments": {"state_dict": whole, "args": argparse.Namespace(lr=0.1)},
        "list": [1, 2],
    }
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        data = {"empty": b"", "text": b"weights\n", "cut": tiny_clip.weights.read_bytes()[:5000]}
        path.write_bytes(data[kind])
    with pytest.raises(ConfigError, match=r"epoch_1\.pt") as refused:
        ClipScorer(tiny_clip.score_config(pretrained=str(path)))
    if kind in ("epoch", "arguments"):
        assert "keep its state_dict alone" in str(refused.value)
