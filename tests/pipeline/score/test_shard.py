import dataclasses
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.score.shard import read_provenance, score_shard
from schemas.columns import file_metadata, read_table
from schemas.errors import DatasetError, RejectReason
from schemas.records import (
    REJECTION_SCHEMA,
    SCORED_SCHEMA,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.clip.scorer import ClipScorer
from tests.scored import make_shard


def test_scored_rows_are_the_fetched_rows_with_open_clips_scores(
    tiny_clip: Any, tmp_path: Path
) -> None:
    layout, config = DatasetLayout(str(tmp_path)), tiny_clip.score_config()
    samples = make_shard(layout, 3)
    score_shard(layout, 3, config)
    table = read_table(layout.scored(3), SCORED_SCHEMA)
    assert table["key"].to_pylist() == [sample.key for sample in samples]
    open_clip.add_model_config(tiny_clip.config_file)
    model, _, transform = open_clip.create_model_and_transforms(
        "tiny-clip", pretrained=str(tiny_clip.weights)
    )
    model.eval()
    tokens = open_clip.get_tokenizer("tiny-clip")([sample.caption for sample in samples])
    with tarfile.open(layout.fetched(3, "tar")) as tar, torch.no_grad():
        images = [
            transform(Image.open(tar.extractfile(f"{s.key}.{s.image_format}")))  # type: ignore[arg-type]
            for s in samples
        ]
        image = model.encode_image(torch.stack(images), normalize=True)
        expected = (image * model.encode_text(tokens, normalize=True)).sum(-1).numpy()
    np.testing.assert_allclose(table["clip_score"].to_numpy(), expected, atol=2e-6)
    stored = np.array(table["image_embedding"].to_pylist())
    np.testing.assert_allclose(stored, image.numpy(), atol=1e-3)
    assert read_table(layout.rejected(Stage.SCORE, 3), REJECTION_SCHEMA).num_rows == 0


def test_scoring_again_gives_the_same_bytes_and_a_committed_shard_is_left_alone(
    tiny_clip: Any, tmp_path: Path
) -> None:
    layout, config = DatasetLayout(str(tmp_path)), tiny_clip.score_config()
    make_shard(layout, 0)
    score_shard(layout, 0, config)
    path = Path(layout.scored(0))
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    score_shard(layout, 0, dataclasses.replace(config, decode_threads=1))
    assert path.stat().st_mtime_ns == written
    path.unlink()
    score_shard(layout, 0, config)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_other_images_or_another_model_are_scored_again(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    fingerprints = set()
    for config in (
        tiny_clip.score_config(),
        tiny_clip.score_config(model=f"local-dir:{tiny_clip.folder}"),
        tiny_clip.score_config(prompt_template="a photo of {caption}"),
        tiny_clip.score_config(batch_size=5),
    ):
        score_shard(layout, 0, config)
        fingerprints.add(file_metadata(pq.read_schema(layout.scored(0)))["fingerprint"])
    Path(layout.fetched(0, "_stats.json")).write_text('{"fingerprint": "other"}')
    score_shard(layout, 0, tiny_clip.score_config())
    fingerprints.add(file_metadata(pq.read_schema(layout.scored(0)))["fingerprint"])
    assert len(fingerprints) == 5


def test_scores_carry_what_made_them(tiny_clip: Any, tmp_path: Path) -> None:
    layout, config = DatasetLayout(str(tmp_path)), tiny_clip.score_config(keep_embeddings=False)
    make_shard(layout, 0, rows=3)
    score_shard(layout, 0, config)
    provenance = read_provenance(layout, 0)
    assert provenance.config == config
    assert provenance.model["model"] == "tiny-clip"
    assert len(provenance.model["weights_sha256"]) == 64
    assert provenance.model["precision"] == "fp32" and provenance.model["device"] == "cpu"
    assert provenance.model["version.torch"] == torch.__version__.split("+")[0]
    table = read_table(layout.scored(0), SCORED_SCHEMA)
    assert table["image_embedding"].null_count == 3


def test_scores_say_how_many_images_fitted_into_memory_at_once(
    tiny_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, config = DatasetLayout(str(tmp_path)), tiny_clip.score_config(batch_size=8)
    scorer = ClipScorer(config)
    encode = scorer.image_tower

    def encode_two(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("memory for two images")
        return encode(images)

    monkeypatch.setattr(scorer, "image_tower", encode_two)
    monkeypatch.setattr("scoring.clip.scorer.shared_scorer", lambda config: scorer)
    make_shard(layout, 0)
    score_shard(layout, 0, config)
    assert read_provenance(layout, 0).fitted_batch_size == 2
    assert file_metadata(pq.read_schema(layout.scored(0)))["fitted_batch_size"] == "2"


def test_pair_whose_score_is_not_finite_is_rejected(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    samples = make_shard(layout, 0)
    state = torch.load(tiny_clip.weights)
    tokens = open_clip.get_tokenizer("ViT-B-32")([samples[4].caption, "caption number of 0"])
    only_there = (set(tokens[0].tolist()) - set(tokens[1].tolist())).pop()
    state["token_embedding.weight"][only_there] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    score_shard(layout, 0, tiny_clip.score_config(pretrained=str(tmp_path / "nan.pt")))
    kept = read_table(layout.scored(0), SCORED_SCHEMA)["key"].to_pylist()
    rejected = read_table(layout.rejected(Stage.SCORE, 0), REJECTION_SCHEMA).to_pylist()
    assert samples[4].key in {row["key"] for row in rejected}
    assert {row["reason"] for row in rejected} == {RejectReason.SCORE_NOT_FINITE.value}
    assert sorted([*kept, *(row["key"] for row in rejected)]) == [s.key for s in samples]


def test_empty_shard_is_scored(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0, rows=0)
    score_shard(layout, 0, tiny_clip.score_config())
    assert read_table(layout.scored(0), SCORED_SCHEMA).num_rows == 0


def test_damaged_or_missing_shard_is_named(tiny_clip: Any, tmp_path: Path) -> None:
    layout, config = DatasetLayout(str(tmp_path)), tiny_clip.score_config()
    with pytest.raises(DatasetError, match="fetch shard 0 before"):
        score_shard(layout, 0, config)
    make_shard(layout, 0)
    path = Path(layout.fetched(0, "tar"))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DatasetError, match="fetch shard 0 again"):
        score_shard(layout, 0, config)
    assert not Path(layout.scored(0)).exists()
