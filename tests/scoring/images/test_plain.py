import io

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scoring.images.plain import is_plain

PICTURE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")


def saved(file_format, **settings):
    file = io.BytesIO()
    PICTURE.save(file, file_format, **settings)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
def test_a_picture_alone_is_plain_and_with_a_byte_more_it_is_not(file_format):
    data = saved(file_format)
    assert is_plain(data, file_format.lower())
    assert not is_plain(data + b"x", file_format.lower())
    assert not is_plain(data[:-1], file_format.lower())


def test_what_says_more_than_a_picture_is_not_plain():
    text = PngInfo()
    text.add_text("comment", "who took it")
    exif = Image.Exif()
    exif[0x010E] = "where it was"
    assert not is_plain(saved("PNG", pnginfo=text), "png")
    for file_format in ("JPEG", "WEBP"):
        assert not is_plain(saved(file_format, exif=exif.tobytes()), file_format.lower())
    assert not is_plain(saved("GIF"), "gif")
