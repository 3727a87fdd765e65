import io

import pytest
from PIL import Image

from scoring.images.webp import with_true_length


def webp():
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "WEBP")
    return file.getvalue()


@pytest.mark.parametrize("length", [0, 7, 2**31])
def test_a_wrong_outer_length_is_mended_where_all_chunks_are_there(length):
    data = webp()
    wrong = data[:4] + length.to_bytes(4, "little") + data[8:]
    assert with_true_length(wrong) == data
    assert with_true_length(data) == data


def test_a_file_that_is_cut_off_stays_as_it_is():
    cut = webp()[:-5]
    assert with_true_length(cut) == cut
