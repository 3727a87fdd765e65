import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.dataset.captions import (
    MOST_CAPTIONS,
    caption_choices,
    caption_hashes,
    chosen_captions,
    stored_captions,
)
from pipeline.score.rescore import rescore_dataset
from schemas.columns import read_table
from schemas.errors import SampleRejected
from schemas.records import SCORED_SCHEMA, TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from scoring.clip.scorer import ClipScorer
from scoring.config import DeduplicateConfig
from tests.curations import curate


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)))
def test_stored_captions_come_back_trimmed_and_without_repetitions(texts: list[str]) -> None:
    first, several = stored_captions(texts)
    expected = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    assert first == (expected[0] if expected else None)
    assert (several is None) == (len(expected) < 2)
    rows = pa.table({"caption": [first or ""], "captions": pa.array([several], pa.string())})
    assert caption_choices(rows) == [expected or [""]]
    last = max(len(expected) - 1, 0)
    assert chosen_captions(rows, [last]) == [expected[-1] if expected else ""]


def test_too_many_captions_are_refused() -> None:
    texts = [f"caption {number}" for number in range(MOST_CAPTIONS + 1)]
    assert len(json.loads(stored_captions(texts[1:])[1] or "")) == MOST_CAPTIONS
    with pytest.raises(SampleRejected, match="it has 101 captions"):
        stored_captions(texts)


def test_captions_agree_but_for_case_and_spaces() -> None:
    hashes = caption_hashes(["A  red Car", "a red car ", "a car"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_the_best_scored_of_several_captions_is_in_the_dataset(
    tiny_clip: Any, tmp_path: Path
) -> None:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    words = ["red", "dog", "truck", "sea", "old", "tree", "night", "cat", "hill", "blue"]
    captions = {}
    for number in range(9):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 48)).save(folder / f"{number}.png")
        texts = [" ".join(rng.permutation(words)[:4]) for _ in range(1 + number % 4)]
        captions[f"{number}.png"] = texts
    lines = [json.dumps({"file_name": name, "captions": texts}) for name, texts in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    config = CurationConfig(
        read=ReadConfig(pairs_per_shard=5),
        fetch=FetchConfig(allow_folders=(str(folder),), image_format="png"),
        score=tiny_clip.score_config(),
        deduplicate=DeduplicateConfig(threshold=1.5, device="cpu"),
    )
    layout = DatasetLayout(str(tmp_path / "data"))
    curate(config, folder, layout.root)
    rows = [
        row
        for path in sorted(Path(layout.root, "train").glob("*.parquet"))
        for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()
    ]
    index = {
        row["key"]: row["caption_index"]
        for path in sorted(Path(layout.root, "scored").glob("*.parquet"))
        for row in read_table(str(path), SCORED_SCHEMA).to_pylist()
    }
    assert len(rows) == 9
    scorer = ClipScorer(config.score)
    for row in rows:
        name = Path(row["url"]).name
        texts, image = captions[name], np.asarray(Image.open(folder / name))
        scores = scorer.score([image] * len(texts), texts).clip_score
        assert row["caption"] == texts[int(scores.argmax())]
        assert index[row["key"]] == scores.argmax()
        assert row["clip_score"] == pytest.approx(float(scores.max()), abs=1e-5)
        assert row["captions"] == (json.dumps(texts, separators=(",", ":")) if texts[1:] else None)
    with tarfile.open(layout.train(0, "tar")) as tar:
        for row in rows:
            text = tar.extractfile(f"{row['key']}.txt")
            values = tar.extractfile(f"{row['key']}.json")
            assert text is not None and text.read().decode() == row["caption"]
            assert values is not None
            several = json.loads(values.read())["captions"]
            assert several == (json.loads(row["captions"]) if row["captions"] else [row["caption"]])
    assert len(set(index.values())) > 2
    assert rescore_dataset(layout.root, sample=9).largest_difference <= 1e-4
