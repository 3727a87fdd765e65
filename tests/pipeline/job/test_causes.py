from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.job.causes import large_rejections
from schemas.errors import RejectReason, SampleRejected
from schemas.manifest import StageCounts
from schemas.records import Pair
from schemas.shards import DatasetLayout
from schemas.stages import Stage


def lost(number: int, detail: str) -> object:
    pair = Pair(
        key=f"{number:032x}", url=f"a/{number}.jpg", caption="x", conversations=None, source="in",
        expected_hash=None,
    )  # fmt: skip
    return rejection(pair, SampleRejected(RejectReason.BAD_URL, detail))


def test_a_reason_that_costs_many_rows_is_told_with_an_example_and_what_to_do(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    rows = [lost(number, "it is\x1b[2J no URL") for number in range(3)]
    write_rejections(layout, Stage.READ, 0, rows, "f")
    stages = {
        "read": StageCounts(rows_in=10, kept=1, rejected={"bad_url": 3, "duplicate_row": 6}),
        "fetch": StageCounts(rows_in=100, kept=91, rejected={"timed_out": 9}),
    }
    [told] = large_rejections(layout, stages)
    assert told.startswith("read left out 3 of 10 rows (30%) as bad_url. For example: a/0.jpg: it")
    assert "\x1b" not in told
    assert told.endswith("What to do: read.image_folder says where paths of images begin.")


def test_a_job_that_lost_little_says_nothing(tmp_path):
    stages = {"read": StageCounts(rows_in=100, kept=99, rejected={"bad_url": 1})}
    assert large_rejections(DatasetLayout(str(tmp_path)), stages) == []
    assert (
        large_rejections(
            DatasetLayout(str(tmp_path)), {"fetch": StageCounts(rows_in=0, kept=0, rejected={})}
        )
        == []
    )
