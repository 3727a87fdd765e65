import io

import pytest

from pipeline.fetch.decoding.frames import read_frame, write_frame


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
