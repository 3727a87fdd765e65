import json
from pathlib import Path

from pipeline.config import PackConfig
from pipeline.pack.shard import pack_shard
from schemas.columns import read_table
from schemas.records import TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from tests.datasets import fetched_sample, plan_train_shards, write_dataset, write_fetched


def train_rows(root: Path) -> list[dict]:
    paths = sorted((root / "train").glob("*.parquet"))
    return [row for path in paths for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()]


def test_a_shard_is_packed_again_when_what_it_is_made_of_changes(tmp_path):
    write_dataset(tmp_path, shards=1, is_scored=False)
    layout, config = DatasetLayout(str(tmp_path)), PackConfig(samples_per_shard=100)
    for caption in ("before", "after"):
        sample = fetched_sample(1)
        sample = type(sample)(
            **{
                **{name: getattr(sample, name) for name in sample.__dataclass_fields__},
                "caption": caption,
            }
        )
        write_fetched(layout, 0, [sample])
        stats = Path(layout.fetched(0, "_stats.json"))
        stats.write_text(json.dumps({"fingerprint": caption}))
        (plan,) = plan_train_shards(layout, [0], config, has_levels=False)
        pack_shard(layout, plan, config)
        assert [row["caption"] for row in train_rows(tmp_path)] == [caption]
