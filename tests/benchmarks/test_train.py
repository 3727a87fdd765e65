"""The table of the trainer's benchmark."""

from benchmarks.train.run import COLUMNS, row


def test_a_row_has_a_cell_for_each_column_and_leaves_empty_what_was_not_measured() -> None:
    found = {
        "targets_per_second": 1234.5,
        "padding_ratio": 0.504,
        "wait_ratio": 0.0031,
        "steps": 7.0,
        "ratio_of_targets_per_second": 2.214,
    }
    cells = dict(zip(COLUMNS, row(2, "usual", found), strict=True))
    assert cells == {
        "stage": "2",
        "side": "usual",
        "target tokens/s": "1,234",
        "padding": "50.4%",
        "waiting for data": "0.31%",
        "steps counted": "7",
        "ours : it, by the clock": "2.21",
        "by processor time": "",
        "MFU": "",
        "peak GPU memory, GiB": "",
    }
