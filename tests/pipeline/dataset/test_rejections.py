from pipeline.dataset.deny import DENIED
from pipeline.dataset.rejections import count_reasons, rejection, write_rejections
from schemas.columns import read_table
from schemas.errors import RejectReason, SampleRejected
from schemas.records import REJECTION_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.datasets import fetched_sample, pair_of

PAIR = pair_of(fetched_sample(1))


def test_a_rejection_tells_where_and_why_and_what_is_known():
    row = rejection(PAIR, SampleRejected(RejectReason.HTTP_STATUS, "status 404", http_status=404))
    assert (row.stage, row.reason, row.http_status) == ("fetch", "http_status", 404)
    assert (row.key, row.url, row.caption, row.kept_key) == (PAIR.key, PAIR.url, PAIR.caption, None)
    near = SampleRejected(RejectReason.NEAR_DUPLICATE, "cosine 0.99")
    assert rejection(PAIR, near, kept_key="other", clip_score=0.5).kept_key == "other"


def test_of_a_denied_pair_neither_address_nor_caption_is_kept():
    for reason in DENIED:
        row = rejection(PAIR, SampleRejected(reason, "on a list"))
        assert (row.url, row.caption, row.key) == (None, None, PAIR.key)


def test_the_table_stands_also_when_it_is_empty(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    row = rejection(PAIR, SampleRejected(RejectReason.NEAR_DUPLICATE, "x"))
    for shard, rows in enumerate([[], [row]]):
        write_rejections(layout, Stage.DEDUPLICATE, shard, rows, "f")
        table = read_table(layout.rejected(Stage.DEDUPLICATE, shard), REJECTION_SCHEMA)
        assert table["key"].to_pylist() == [row.key for row in rows]


def test_reasons_are_counted_in_their_own_order():
    reasons = [RejectReason.NEAR_DUPLICATE, RejectReason.HTTP_STATUS, RejectReason.NEAR_DUPLICATE]
    rows = [rejection(PAIR, SampleRejected(reason, "x")) for reason in reasons]
    assert list(count_reasons(rows).items()) == [("http_status", 1), ("near_duplicate", 2)]
