from pipeline.report.page import covered_seconds


def test_time_in_which_several_shards_were_fetched_counts_once() -> None:
    assert covered_seconds([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.0, 1.5)]) == 5.0
    assert covered_seconds([]) == 0.0
