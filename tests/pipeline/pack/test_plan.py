import pytest

from pipeline.config import PackConfig
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from tests.datasets import plan_train_shards


def test_a_missing_stage_is_named(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with pytest.raises(DatasetError, match=r"00000\.parquet is missing"):
        plan_train_shards(layout, [0], PackConfig(), has_levels=True)
