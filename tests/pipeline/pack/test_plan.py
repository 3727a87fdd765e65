import pytest

from pipeline.config import PackConfig
from pipeline.pack.plan import plan_train_shards
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout


def test_a_missing_stage_is_named(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with pytest.raises(DatasetError, match=r"00000\.parquet is missing"):
        plan_train_shards(layout, [0], PackConfig(), has_levels=True)
