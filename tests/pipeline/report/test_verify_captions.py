"""What a row tells of its captions holds together."""

import pytest

from pipeline.report.verify_captions import caption_faults

TAKEN = {
    "caption": "new",
    "clip_score": 0.5,
    "is_recaptioned": True,
    "original_caption": "old",
    "original_score": 0.25,
    "original_level": 1,
    "model_caption": "new",
    "model_score": 0.5,
    "model_refused": None,
    "caption_model": "m",
}
LEFT = {**TAKEN, "is_recaptioned": False, "caption": "old", "clip_score": 0.25, "model_score": 0.2}
REFUSED = {**LEFT, "model_caption": None, "model_score": None, "model_refused": "empty"}
UNASKED = {**dict.fromkeys(TAKEN), "caption": "old", "clip_score": 0.25}


@pytest.mark.parametrize("row", [TAKEN, LEFT, REFUSED, UNASKED])
def test_what_holds_together_is_no_fault(row):
    assert list(caption_faults(row, is_recaptioned=True)) == []


@pytest.mark.parametrize(
    ("row", "change", "fault"),
    [
        (TAKEN, {"caption": "old"}, "its caption is not its model_caption"),
        (TAKEN, {"clip_score": 0.25}, "its clip_score is not its model_score"),
        (TAKEN, {"original_score": 0.75}, "is_recaptioned is True, its scores are 0.75 before"),
        (LEFT, {"model_score": 0.3}, "is_recaptioned is False, its scores are 0.25 before, 0.3"),
        (LEFT, {"caption": "new"}, "its caption is not its original_caption"),
        (REFUSED, {"model_refused": None}, "its model_score is None, its model_refused None"),
        (UNASKED, {"model_caption": "new"}, "model_caption is of a caption by a model"),
    ],
)
def test_what_does_not_is_told(row, change, fault):
    assert any(found.startswith(fault) for found in caption_faults({**row, **change}, True))
    assert list(caption_faults({**row, **change}, is_recaptioned=False)) == []
