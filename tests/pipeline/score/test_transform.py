import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.cli import run
from pipeline.score.rescore import rescore_dataset
from pipeline.score.shard import read_provenance, score_shard
from pipeline.score.transform import ScoreShards
from schemas.columns import file_metadata, read_table, table_from_records, write_table
from schemas.errors import DatasetError, RejectReason
from schemas.records import (
    FETCHED_SCHEMA,
    REJECTION_SCHEMA,
    SCORED_SCHEMA,
    FetchedSample,
    pair_key,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.clip.scorer import ClipScorer

ROWS = 23


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def make_image(seed: int, image_format: str) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((40 + seed, 48)).save(buffer, image_format)
    return buffer.getvalue()


def make_shard(layout: DatasetLayout, shard: int, rows: int = ROWS) -> list[FetchedSample]:
    """Writes a fetched shard as the fetch stage leaves it."""
    extensions = {"jpg": "jpeg", "png": "png", "webp": "webp"}
    samples = []
    for row in range(rows):
        url, caption = f"https://host.example/{shard}/{row}.jpg", f"caption number {row} of {shard}"
        samples.append(
            FetchedSample(
                key=pair_key(url, caption),
                url=url,
                caption=caption,
                conversations=None,
                source="pairs.csv",
                expected_hash=None,
                image_format=list(extensions)[row % 3],
                width=40 + row,
                height=48,
                original_width=40 + row,
                original_height=48,
                sha256=None,
                pixel_hash=None,
            )
        )
    samples.sort(key=lambda sample: sample.key)
    Path(layout.fetched(shard, "tar")).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(layout.fetched(shard, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, sample in enumerate(samples):
            assert sample.image_format is not None
            image = make_image(row, extensions[sample.image_format])
            add_member(tar, f"{sample.key}.{sample.image_format}", image)
            add_member(tar, f"{sample.key}.txt", sample.caption.encode())
            add_member(tar, f"{sample.key}.json", json.dumps({"key": sample.key}).encode())
    write_table(table_from_records(samples, FETCHED_SCHEMA), layout.fetched(shard, "parquet"))
    Path(layout.fetched(shard, "_stats.json")).write_text(json.dumps({"fingerprint": f"f{shard}"}))
    return samples


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
    encode = scorer._encode_image

    def encode_two(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("memory for two images")
        return encode(images)

    monkeypatch.setattr(scorer, "_encode_image", encode_two)
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


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_shards_are_scored_by_a_beam_job(tiny_clip: Any, tmp_path: Path, device: str) -> None:
    layout, alone = DatasetLayout(str(tmp_path / "job")), DatasetLayout(str(tmp_path / "alone"))
    config = tiny_clip.score_config(device=device)
    for shard in range(3):
        make_shard(layout, shard)
    shutil.copytree(layout.root, alone.root)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        shards = pipeline | beam.Create([0, 1, 2])
        scored = shards | ScoreShards(layout, config)
        scored | beam.combiners.ToList() | beam.Map(lambda found: _assert_same(found, {0, 1, 2}))
    for shard in range(3):
        score_shard(alone, shard, config)
        assert Path(layout.scored(shard)).read_bytes() == Path(alone.scored(shard)).read_bytes()


def _assert_same(found: list[int], expected: set[int]) -> None:
    assert set(found) == expected


def test_sample_is_rescored_to_the_same_scores(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    for shard in range(2):
        make_shard(layout, shard)
        score_shard(layout, shard, tiny_clip.score_config())
    report = rescore_dataset(layout.root, sample=9)
    assert report.sampled == 9 and report.is_reproduced
    assert report.largest_difference <= 1e-5
    assert rescore_dataset(layout.root, sample=1000).sampled == 2 * ROWS
    assert str(report).startswith("reproduced: 9 scores of tiny-clip tiny-clip.pt fp32")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-3)])
def test_scores_are_recomputed_within_the_tolerance_beside_other_pairs(
    tiny_clip: Any, tmp_path: Path, precision: Any, tolerance: float
) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config(precision=precision, batch_size=7))
    report = rescore_dataset(layout.root, sample=10)
    assert report.tolerance == tolerance
    assert report.sampled == 10 and report.largest_difference <= tolerance


def test_rescoring_finds_a_score_that_was_tampered_with(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config())
    table = read_table(layout.scored(0), SCORED_SCHEMA)
    scores = table["clip_score"].to_numpy().copy()
    scores[7] += 0.01
    column = table.schema.get_field_index("clip_score")
    changed = table.set_column(column, table.schema.field(column), [scores])
    metadata = file_metadata(table.schema)
    write_table(changed, layout.scored(0), metadata)
    report = rescore_dataset(layout.root, sample=ROWS)
    assert not report.is_reproduced
    assert report.worst[0].key == table["key"][7].as_py()
    assert report.worst[0].key in str(report)


def test_rescoring_with_another_model_fails_and_says_so(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    weights = tmp_path / "weights.pt"
    shutil.copy(tiny_clip.weights, weights)
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config(pretrained=str(weights)))
    moved = rescore_dataset(layout.root, sample=5, pretrained=str(tiny_clip.weights))
    assert moved.is_reproduced
    state = torch.load(weights)
    state["visual.proj"] *= -1
    torch.save(state, weights)
    with pytest.raises(DatasetError, match="not the model that made these scores: weights_sha256"):
        rescore_dataset(layout.root, sample=5)


def test_rescoring_what_is_not_scored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no scores"):
        rescore_dataset(str(tmp_path), sample=5)


def test_sample_is_spread_over_all_shards_and_as_large_as_asked_for(
    tiny_clip: Any, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    shard_of = {}
    for shard in range(4):
        shard_of |= {sample.key: shard for sample in make_shard(layout, shard, rows=8)}
        score_shard(layout, shard, tiny_clip.score_config())
    report = rescore_dataset(layout.root, sample=9)
    assert report.sampled == 9
    found = [shard_of[row.key] for row in report.worst]
    assert sorted(found) == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_scores_of_nothing_are_not_reproduced(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0, rows=0)
    score_shard(layout, 0, tiny_clip.score_config())
    with pytest.raises(DatasetError, match="no scored pair"):
        rescore_dataset(layout.root, sample=5)


def test_rescore_command_says_whether_the_scores_are_reproduced(
    tiny_clip: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config())
    assert run(["rescore", "--sample", "5", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("reproduced: 5 scores of tiny-clip")
    assert run(["rescore", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(("device", "is_asked_for"), [("cuda", True), ("cpu", False)])
def test_gpu_workers_are_asked_for_only_where_the_model_needs_one(
    tiny_clip: Any, device: str, is_asked_for: bool
) -> None:
    config = tiny_clip.score_config(device=device, accelerator="type:nvidia-h200;count:1")
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([0]) | ScoreShards(DatasetLayout("unused"), config)
    assert (b"type:nvidia-h200;count:1" in pipeline.to_runner_api().SerializeToString()) is (
        is_asked_for
    )
