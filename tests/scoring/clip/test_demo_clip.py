"""The demonstration CLIP through our own scoring: right scores, and scores that mean something."""

import csv
import importlib.util
import io
from pathlib import Path

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.config import FetchConfig
from pipeline.deduplicate.transform import KeepBestOfDuplicates
from pipeline.fetch.shard import fetch_shard
from pipeline.score.rescore import rescore_dataset
from pipeline.score.shard import score_shard
from schemas.columns import read_table, table_from_records, write_table
from schemas.records import (
    FETCHED_SCHEMA,
    PAIR_SCHEMA,
    REJECTION_SCHEMA,
    SCORED_SCHEMA,
    UNIQUE_SCHEMA,
    Pair,
    pair_key,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.clip.scorer import ClipScorer
from scoring.config import DeduplicateConfig, ScoreConfig
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
CORPUS = EXAMPLES / "corpus"
CAPTIONS = ["", "猫の写真 🐈", "a red fire truck", "word " * 90]
EVERY = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ScoreConfig:
    """Returns how to score with the demonstration CLIP, assembled anew."""
    path = EXAMPLES / "assemble_models.py"
    spec = importlib.util.spec_from_file_location("assemble_models", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("models") / "demo_clip"
    script.assemble(folder, *script.recipes()["demo_clip"])
    return ScoreConfig(
        model=f"local-dir:{folder}", device="cpu", threads=2, batch_size=16, precision="fp32"
    )


def stamps() -> list[tuple[Path, str]]:
    """Returns every fifth picture that shows a thing rather than a letter or a sign."""
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, dialect="excel-tab")]
    shown = [row for row in rows if row["topic"] != "symbols"]
    return [(CORPUS / row["file"], row["caption"]) for row in shown[::EVERY]]


def scored(root: Path, pairs: list[tuple[Path, str]], config: ScoreConfig) -> dict[str, float]:
    """Returns the scores of pairs by their captions, through the stages of the pipeline."""
    layout = DatasetLayout(str(root))
    rows = [
        Pair(
            key=pair_key(str(path), caption),
            url=str(path),
            caption=caption,
            conversations=None,
            source="pairs.tsv",
            expected_hash=None,
        )
        for path, caption in pairs
    ]
    rows.sort(key=lambda pair: pair.key)
    Path(layout.pairs(0)).parent.mkdir(parents=True)
    write_table(table_from_records(rows, PAIR_SCHEMA), layout.pairs(0), {"fingerprint": "pairs"})
    fetch_shard(layout, 0, FetchConfig(allow_folders=(str(CORPUS),), decode_processes=1))
    score_shard(layout, 0, config)
    fetched = read_table(layout.fetched(0, "parquet"), FETCHED_SCHEMA)
    table = read_table(layout.scored(0), SCORED_SCHEMA)
    assert table["key"].to_pylist() == [pair.key for pair in rows]
    return dict(zip(fetched["caption"].to_pylist(), table["clip_score"].to_pylist(), strict=True))


def auc(better: npt.ArrayLike, worse: npt.ArrayLike) -> float:
    """Returns how often a score of the first kind is above one of the second."""
    return float(np.mean(np.asarray(better)[:, None] > np.asarray(worse)[None, :]))


def test_scores_equal_open_clips_own_code(config: ScoreConfig) -> None:
    images = [prepare_image(path.read_bytes(), ImageSettings()).encoded for path, _ in stamps()[:8]]
    captions = [*(caption for _, caption in stamps()[:4]), *CAPTIONS]
    model, _, transform = open_clip.create_model_and_transforms(config.model)
    model.eval()
    tokenizer = open_clip.get_tokenizer(config.model)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(io.BytesIO(image))) for image in images])
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer(captions), normalize=True)
    expected = (image * text).sum(-1).numpy()
    found = ClipScorer(config).score(images, captions)
    np.testing.assert_allclose(found.clip_score, expected, atol=2e-6)
    assert found.is_truncated.tolist() == [False] * 7 + [True]


def test_pairs_score_above_shuffled_pairs_through_the_stages(
    config: ScoreConfig, tmp_path: Path
) -> None:
    pairs = stamps()
    captions = [caption for _, caption in pairs]
    shuffled = [(path, captions[(row + 37) % len(pairs)]) for row, (path, _) in enumerate(pairs)]
    matched_scores = scored(tmp_path / "matched", pairs, config)
    shuffled_scores = scored(tmp_path / "shuffled", shuffled, config)
    assert len(matched_scores) == len(shuffled_scores) == len(pairs)
    assert auc(list(matched_scores.values()), list(shuffled_scores.values())) >= 0.80
    report = rescore_dataset(str(tmp_path / "matched"), sample=10)
    assert report.is_reproduced and report.sampled == 10


def test_of_several_captions_for_a_picture_the_best_scored_stays(
    config: ScoreConfig, tmp_path: Path
) -> None:
    chosen = stamps()[:6]
    captions = [caption for _, caption in chosen]
    pairs = [
        (path, captions[(row + step) % 6])
        for row, (path, _) in enumerate(chosen)
        for step in (0, 2)
    ]
    scored(tmp_path, pairs, config)
    layout = DatasetLayout(str(tmp_path))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        only_exact = DeduplicateConfig(threshold=2.0, device="cpu")
        _ = pipeline | beam.Create([0]) | KeepBestOfDuplicates(layout, only_exact)
    fetched = read_table(layout.fetched(0, "parquet"), FETCHED_SCHEMA)
    score = read_table(layout.scored(0), SCORED_SCHEMA)["clip_score"].to_pylist()
    best: dict[str, float] = {}
    for url, value in zip(fetched["url"].to_pylist(), score, strict=True):
        best[url] = max(best.get(url, -1.0), value)
    kept = read_table(layout.unique(0), UNIQUE_SCHEMA)
    assert sorted(kept["clip_score"].to_pylist()) == pytest.approx(sorted(best.values()))
    assert kept["duplicate_count"].to_pylist() == [1] * 6
    rejected = read_table(layout.rejected(Stage.DEDUPLICATE, 0), REJECTION_SCHEMA)
    assert set(rejected["kept_key"].to_pylist()) == set(kept["key"].to_pylist())
