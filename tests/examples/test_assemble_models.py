"""The models that are assembled from wheels load as any other, and know something."""

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS = EXAMPLES / "corpus"
SCRIPT = EXAMPLES / "assemble_models.py"

pytestmark = pytest.mark.slow


def script() -> ModuleType:
    """Returns the script as a module; it is no part of an installed package."""
    spec = importlib.util.spec_from_file_location("assemble_models", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assemble(out: Path, name: str) -> bool:
    made = script()
    return made.assemble(out / name, *made.recipes()[name])


@pytest.fixture(scope="module")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models")
    assemble(out, "demo_clip")
    return f"local-dir:{out / 'demo_clip'}"


def on_white(path: Path) -> Image.Image:
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def stamps_without_symbols() -> list[tuple[Path, str]]:
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, dialect="excel-tab")]
    shown = [row for row in rows if row["topic"] != "symbols"]
    return [(CORPUS / row["file"], row["caption"]) for row in shown]


@torch.inference_mode()
def scores(name: str, pairs: list[tuple[Path, str]]) -> np.ndarray:
    """Returns the cosine of each picture with each caption, pictures in rows."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    # One by one, pictures stay in the processor's cache; captions are as wide as they need to be.
    images = [model.encode_image(preprocess(on_white(p))[None], normalize=True) for p, _ in pairs]
    tokens = open_clip.get_tokenizer(name)([caption for _, caption in pairs])
    widths = (tokens != model.text.config.pad_token_id).sum(dim=1)
    texts = torch.empty(len(pairs), images[0].shape[1])
    for width in widths.unique().tolist():
        is_so_wide = widths == width
        texts[is_so_wide] = model.encode_text(tokens[is_so_wide, :width], normalize=True)
    return (torch.cat(images) @ texts.T).numpy()


def auc(table: np.ndarray) -> float:
    """Returns how often a matching pair scores above another pair."""
    matched = np.diagonal(table)
    others = np.sort(table[~np.eye(len(table), dtype=bool)])
    return float(np.mean(np.searchsorted(others, matched)) / len(others))


def test_the_demonstration_clip_reaches_the_published_auc_on_the_stamps(demo_clip: str) -> None:
    published = json.loads((EXAMPLES / "demo_clip" / "heads_metrics.json").read_text())
    measured = auc(scores(demo_clip, stamps_without_symbols()))
    assert measured >= 0.80
    assert measured == pytest.approx(published["stamps_without_symbols"]["auc"], abs=0.01)


def test_the_vision_tower_sees_49_patches_and_knows_a_tiger(tmp_path: Path) -> None:
    assemble(tmp_path, "vision_tower")
    tower = timm.create_model(f"local-dir:{tmp_path / 'vision_tower'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(tower))
    pixels = transform(on_white(CORPUS / "images/animals/mammals/cats/tiger.png"))[None]
    with torch.inference_mode():
        assert tower.forward_features(pixels).shape == (1, 1280, 7, 7)
        label = ImageNetInfo().index_to_description(int(tower(pixels).argmax()))
    assert "tiger" in label.lower()


def test_assembling_twice_leaves_the_first_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = script()
    # What the script sets is for its own process.
    monkeypatch.setattr(made.transformers_logging, "disable_progress_bar", lambda: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--out", str(tmp_path), "--only", "vision_tower"])
    made.main()
    assert "MB, assembled" in capsys.readouterr().out
    weights = tmp_path / "vision_tower" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    made.main()
    assert "was there already" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
