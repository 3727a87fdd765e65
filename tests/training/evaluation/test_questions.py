from pathlib import Path

from training.evaluation.questions import Picture


def test_pictures_are_seen_as_stored(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    picture = Picture(name="turned.jpg", path=str(path)).open()
    assert picture.size == (40, 20) and picture.getexif().get(0x0112) is None
