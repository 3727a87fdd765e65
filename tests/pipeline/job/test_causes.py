from pathlib import Path

from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.fetch.spool import fetched_sample
from pipeline.job.causes import large_rejections, unseen_columns, wrong_hash_columns
from schemas.columns import table_from_records, write_table
from schemas.errors import RejectReason, SampleRejected
from schemas.manifest import StageCounts
from schemas.records import FETCHED_SCHEMA, Pair, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage


def lost(number: int, detail: str) -> Rejection:
    return rejection(pair(number), SampleRejected(RejectReason.BAD_URL, detail))


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


def test_a_column_of_hashes_that_nearly_all_images_lack_is_told_though_most_were_lost_before(
    tmp_path,
):
    layout = DatasetLayout(str(tmp_path))
    rows = [mismatch(n, "md5") for n in range(19)] + [mismatch(n, "sha256") for n in range(19, 27)]
    write_rejections(layout, Stage.FETCH, 0, rows, "f")
    kept = [fetched_sample(pair(n, f"{name}:00"), (), "jpg") for n, name in enumerate(HASHES)]
    Path(layout.folder(Stage.FETCH)).mkdir()
    write_table(table_from_records(kept, FETCHED_SCHEMA), layout.fetched(0, "parquet"))
    lost_before = {"dns_failed": 1000, "hash_mismatch": 27}
    stages = {"fetch": StageCounts(rows_in=1029, kept=2, rejected=lost_before)}
    [told] = wrong_hash_columns(layout, stages)
    assert told.startswith("19 of 20 images do not have the md5 that the input gives for them")
    assert "without --read.verify-hashes" in told


HASHES = ("md5", "sha256", "sha256")


def pair(number: int, expected: str | None = None) -> Pair:
    return Pair(
        key=f"{number:032x}", url=f"a/{number}.jpg", caption="x", conversations=None, source="in",
        expected_hash=expected,
    )  # fmt: skip


def mismatch(number: int, algorithm: str) -> Rejection:
    detail = f"{algorithm} is 0123"
    return rejection(pair(number), SampleRejected(RejectReason.HASH_MISMATCH, detail))


def test_a_column_that_was_to_be_kept_and_that_no_row_had_is_told(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    assert unseen_columns(layout) == []
    Path(layout.run).mkdir()
    Path(layout.run, "read.json").write_text('{"unseen_columns": ["nsfw"]}')
    [told] = unseen_columns(layout)
    assert told.startswith("No row has anything under 'nsfw', which read.keep_columns asks for")
