import io

import pytest

from pipeline.fetch.decoding.frames import Handling, job_head, read_frame, write_frame


def test_frames_come_back_one_by_one_and_a_cut_one_is_the_end():
    file = io.BytesIO()
    frames = [({"a": 1}, b"x" * 1000), ({}, b"")]
    for header, data in frames:
        write_frame(file, header, data)
    whole = file.getvalue()
    file.seek(0)
    assert [read_frame(file), read_frame(file)] == frames
    for length in (0, 4, 9, 500):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(whole[:length]))


@pytest.mark.parametrize("expected_hash", [None, "md5:a"])
@pytest.mark.parametrize("boxes", [[], [(0.0, 0.0, 0.5, 1.0)]])
@pytest.mark.parametrize("handling", list(Handling))
def test_a_job_says_what_is_to_be_done_with_a_file(expected_hash, boxes, handling) -> None:
    for data in (b"one", b"another"):
        head = job_head(expected_hash, handling, boxes, len(data))
        job, found = read_frame(io.BytesIO(head + data))
        assert found == data
        told = {"expected_hash": expected_hash, "handling": handling.value}
        assert job == {**told, "boxes": [list(box) for box in boxes]}
