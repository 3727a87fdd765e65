"""The stage in the graph."""

import shutil

import apache_beam as beam

from pipeline.cli import run
from pipeline.recaption.transform import RecaptionShards
from schemas.shards import DatasetLayout
from tests.curations import contents
from tests.pipelines import shard_numbers


def test_shards_come_out_once_their_captions_are_committed(recaptioned, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.root, root)
    shutil.rmtree(root / "recaptioned")
    step = RecaptionShards(
        DatasetLayout(str(root)), recaptioned.config.recaption, recaptioned.config.score
    )
    given = shard_numbers(tmp_path, lambda pipeline: pipeline | beam.Create([0, 1]) | step)
    assert given == [0, 1]
    assert sorted(path.name for path in (root / "recaptioned").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
    ]


def test_commands_alone_give_what_the_whole_gives(recaptioned, tmp_path, flags):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.before, root)
    recaption = recaptioned.config.recaption
    words = [
        *("recaption", "--out", str(root), "--recaption.model", str(recaption.model)),
        *("--recaption.levels", "1", "2", "3", "--recaption.batch-size", "4"),
        *("--recaption.max-new-tokens", "8"),
    ]
    assert run(["recaption", "--out", str(root)]) == 2
    assert run(words) == 0
    assert run(["pack", "--out", str(root)]) == 0
    assert run(["report", "--out", str(root)]) == 0
    found, wanted = contents(root), contents(recaptioned.root)
    same = {name for name in wanted if name.startswith("train/")}
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
