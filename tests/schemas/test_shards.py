import pytest

from schemas.shards import DatasetLayout, shard_number
from schemas.stages import Stage


def test_every_kind_of_file_has_its_place():
    layout = DatasetLayout("data/")
    assert layout.pairs(42) == "data/pairs/00042.parquet"
    assert layout.fetched(42, "tar") == "data/fetched/00042.tar"
    assert layout.fetched(42, "_stats.json") == "data/fetched/00042_stats.json"
    assert layout.scored(42) == "data/scored/00042.parquet"
    assert layout.unique(42) == "data/unique/00042.parquet"
    assert layout.levelled(42) == "data/levelled/00042.parquet"
    assert layout.edges == "data/levelled/edges.json"
    assert layout.rejected(Stage.FETCH, 42) == "data/rejected/fetch/00042.parquet"
    assert layout.train(42, "tar") == "data/train/000042.tar"
    assert layout.train_index == "data/train/index.json"
    assert layout.manifest == "data/manifest.json"


def test_a_url_is_a_root_like_a_path():
    assert DatasetLayout("s3://bucket/data/").pairs(0) == "s3://bucket/data/pairs/00000.parquet"


def test_numbers_longer_than_the_padding_are_kept_whole():
    assert DatasetLayout("data").pairs(123456) == "data/pairs/123456.parquet"


@pytest.mark.parametrize(
    "place",
    [
        ("pairs",),
        ("fetched", "tar"),
        ("fetched", "parquet"),
        ("fetched", "_stats.json"),
        ("scored",),
    ],
)
@pytest.mark.parametrize("number", [0, 42, 123456])
def test_a_files_name_says_of_which_shard_it_is(place, number):
    name, *extension = place
    for root in ("data", "s3://bucket/1.5/data"):
        path = getattr(DatasetLayout(root), name)(number, *extension)
        assert shard_number(path) == number
