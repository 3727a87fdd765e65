"""Existing WebDataset shards as input, whatever is wrong with them."""

import json
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.dataset.input_tars import TarFiles, read_members
from pipeline.read.inputs import check_inputs
from pipeline.read.rows import RawRow
from pipeline.read.tar_rows import read_tar
from schemas.errors import ConfigError, DatasetError, RejectReason, SampleRejected
from tests.datasets import jpeg
from tests.fetches import picture
from tests.reads import Members, rows_of, write_tar


def sample(key: str, text: str | None = "a cat", **values: Any) -> Members:
    """Returns the members of a sample: image, caption and, if there are values, json."""
    members: Members = [(f"{key}.jpg", jpeg(sum(key.encode())))]
    if text is not None:
        members.append((f"{key}.txt", text.encode()))
    if values:
        members.append((f"{key}.json", json.dumps(values).encode()))
    return members


def rows(path: Path, table: Path | None = None, **settings: Any) -> list[RawRow]:
    return list(read_tar(str(path), str(table) if table else None, ReadConfig(**settings)))


def test_a_row_says_where_its_image_lies(tmp_path: Path) -> None:
    url = "https://a.example/1.jpg"
    path = write_tar(tmp_path / "0.tar", [*sample("000", url=url), *sample("001", "a dog")])
    first, second = rows(path)
    assert (first.url, first.caption) == (url, "a cat")
    assert (second.url, second.caption) == (f"file://{path}#001.jpg", "a dog")
    files = TarFiles(10_000)
    assert files.read(str(first.tar_member)) == jpeg(sum(b"000"))
    assert files.read(str(second.tar_member)) == jpeg(sum(b"001"))


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_way_of_writing_names_is_read(tmp_path: Path, tar_format: int) -> None:
    deep = "/".join(["folder-of-a-good-length"] * 5)
    names = ["short.jpg", f"{deep}/a.jpg", "ünïcode.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names.append(f"{'long' * 60}.jpg")
    members: Members = [(name, jpeg(number)) for number, name in enumerate(names)]
    path = write_tar(tmp_path / "0.tar", members, tar_format)
    with path.open("rb") as file:
        found = list(read_members(file, path.stat().st_size))
    assert [member.name for member in found] == names
    files = TarFiles(10_000)
    for number, member in enumerate(found):
        assert files.read(member.place_in(str(path))) == jpeg(number)


def test_a_tar_of_the_tar_command_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in sample("000"):
        (folder / str(name)).write_bytes(data)
    names = sorted(path.name for path in folder.iterdir())
    subprocess.run(["tar", "-cf", "../0.tar", *names], cwd=folder, check=True)
    assert [row.caption for row in rows(tmp_path / "0.tar")] == ["a cat"]


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


R = RejectReason
BAD_SAMPLES: dict[str, tuple[RejectReason | None, Members]] = {
    "no caption": (None, sample("k", None)),
    "no image": (R.MISSING_IMAGE, sample("k")[1:]),
    "image of a type that is not taken": (R.MISSING_IMAGE, [("k.jxl", b"x"), ("k.cls", b"1")]),
    "image under an ending of two parts": (R.MISSING_IMAGE, [("k.input.JPG", b"x")]),
    "two images": (R.SEVERAL_IMAGES, [*sample("k"), ("k.png", b"x")]),
    "several images, as our own tars have them": (
        R.SEVERAL_IMAGES,
        [
            *[("k.jpg", jpeg(0)), ("k.1.jpg", jpeg(1)), ("k.txt", b"a")],
            ("k.json", json.dumps({"conversations": "[1]", "more_urls": '["b.jpg"]'}).encode()),
        ],
    ),
    "one name twice": (R.SEVERAL_IMAGES, [*sample("k"), ("k.jpg", b"x")]),
    "one caption twice": (R.MALFORMED_ROW, [*sample("k"), ("k.txt", b"x")]),
    "a key seen before": (R.MALFORMED_ROW, sample("good")),
    "name with parents": (R.MALFORMED_ROW, sample("../../etc/k")),
    "absolute name": (R.MALFORMED_ROW, sample("/etc/k")),
    "link": (R.MALFORMED_ROW, [(link("k.jpg", "/etc/passwd"), b""), ("k.txt", b"x")]),
    "broken json": (R.MALFORMED_ROW, [*sample("k"), ("k.json", b"{")]),
    "json of another kind": (R.MALFORMED_ROW, [*sample("k"), ("k.json", b"[]")]),
    "deep json": (R.MALFORMED_ROW, [*sample("k"), ("k.json", b"[" * 100_000)]),
    "caption that is no text": (R.MALFORMED_ROW, sample("k", None, caption={"a": 1})),
    "caption that is no UTF-8": (R.MALFORMED_ROW, [*sample("k", None), ("k.txt", b"\xff\xfe")]),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_a_bad_sample_costs_only_itself(name: str, tmp_path: Path) -> None:
    reason, members = BAD_SAMPLES[name]
    first, last = sample("good", url="https://a.example/1.jpg"), sample("last")
    path = write_tar(tmp_path / "0.tar", [*first, ("notes.md", b"x"), *members, *last])
    check_inputs([str(path)], ReadConfig())
    good, bad, other = rows(path)
    assert (good.caption, other.caption) == ("a cat", "a cat")
    assert bad.reason == (reason.value if reason else None)
    assert reason is not None or bad.caption is None


def test_captions_come_from_text_then_json_then_the_table(tmp_path: Path) -> None:
    members = [
        *sample("000", "text", caption="json", alt="other"),
        *sample("001", None, caption="json", alt="other"),
        *sample("002", None),
    ]
    path = write_tar(tmp_path / "0.tar", members)
    table = tmp_path / "0.parquet"
    keys = ["000", "001", "002"]
    pq.write_table(pa.table({"key": keys, "caption": ["table"] * 3, "alt": ["cell"] * 3}), table)
    assert [row.caption for row in rows(path, table)] == ["text", "json", "table"]
    named = rows(path, table, caption_column="alt")
    assert [row.caption for row in named] == ["other", "other", "cell"]


def test_what_img2dataset_asked_in_vain_is_rejected_and_says_why(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample("000"))
    columns = {
        "key": ["000", "001", "002"],
        "url": [f"https://a.example/{n}.jpg" for n in range(3)],
        "caption": ["a cat", "a dog", "a cow"],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 404: Not Found", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    (file,) = check_inputs([str(path)], ReadConfig())
    assert file.table == str(tmp_path / "0.parquet")
    kept, gone, lost = rows(path, tmp_path / "0.parquet")
    assert (kept.url, kept.reason) == ("https://a.example/0.jpg", None)
    assert gone.reason == lost.reason == "missing_image"
    assert (gone.url, gone.caption) == ("https://a.example/1.jpg", "a dog")
    assert "HTTP Error 404" in str(gone.detail)
    assert "does not hold it" in str(lost.detail)


def test_a_table_without_keys_is_an_input_of_its_own(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "c.tar", sample("000"))
    table = tmp_path / "c.parquet"
    pq.write_table(pa.table({"url": ["https://a.example/1.jpg"], "caption": ["a cat"]}), table)
    found = check_inputs([str(table), str(tar)], ReadConfig())
    assert [(file.path, file.table) for file in found] == [(str(table), None), (str(tar), None)]
    pq.write_table(pa.table({"number": [1]}), table)
    with pytest.raises(ConfigError, match=r"c\.parquet has no column 'url'"):
        check_inputs([f"{tmp_path}/*"], ReadConfig())
    table.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"c\.parquet, beside .*c\.tar, cannot be read"):
        check_inputs([str(tar)], ReadConfig())


def test_every_row_of_a_table_is_counted_whatever_its_key(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("000"), *sample("001", None)])
    rows_of_table = [("000", 0), ("000", 0), ("001", 1), ("001", 2), ("002", 3), (None, 4)]
    columns = {
        "key": [key for key, _ in rows_of_table],
        "url": [f"https://a.example/{number}.jpg" for _, number in rows_of_table],
        "caption": [f"caption {number}" for _, number in rows_of_table],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    same, contradicted, *others = rows(path, tmp_path / "0.parquet")
    assert (same.url, same.reason) == ("https://a.example/0.jpg", None)
    assert (contradicted.url, contradicted.caption) == (f"file://{path}#001.jpg", None)
    assert [(str(row.url)[-5:-4], row.reason) for row in others] == [
        ("0", "malformed_row"),
        ("2", "malformed_row"),
        ("3", "missing_image"),
        ("4", "malformed_row"),
    ]


@pytest.mark.parametrize("folder", ["./", "images/", "./a/b/"])
def test_a_table_is_found_for_samples_in_a_folder(folder: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample(f"{folder}000"), *sample(f"{folder}001")])
    urls = [f"https://a.example/{number}.jpg" for number in range(3)]
    table = tmp_path / "0.parquet"
    pq.write_table(pa.table({"key": ["000", "001", "002"], "url": urls}), table)
    found = rows(path, table)
    assert [row.url for row in found] == urls
    assert [row.reason for row in found] == [None, None, "missing_image"]


def test_a_table_does_not_guess_among_samples_of_one_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("a/000"), *sample("b/000"), *sample("c/001")])
    table = tmp_path / "0.parquet"
    urls = [f"https://a.example/{number}.jpg" for number in range(2)]
    pq.write_table(pa.table({"key": ["000", "001"], "url": urls}), table)
    names = [f"file://{path}#{folder}/000.jpg" for folder in "ab"]
    assert [row.url for row in rows(path, table)] == [*names, urls[1], urls[0]]


def test_a_sample_is_one_with_and_without_the_folder_that_it_is_in(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("./000")[:1], *sample("000")[1:]])
    (row,) = rows(path)
    assert (row.caption, row.reason) == ("a cat", None)


def test_conversations_of_our_own_shards_are_kept_with_and_without_an_image(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]
    alone = json.dumps({"conversations": turns, "url": None}).encode()
    shown = [{**turns[0], "value": "<image>\nHello"}, turns[1]]
    members = [*sample("000", conversations=shown), ("001.json", alone)]
    with_image, text = rows(write_tar(tmp_path / "0.tar", members))
    assert json.loads(with_image.conversations or "") == shown
    assert json.loads(text.conversations or "") == turns
    assert with_image.tar_member is not None
    assert (text.url, text.tar_member, text.caption) == (None, None, "Hi.")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut short: its writer was stopped"),
        (lambda data: data[:-10240], "cut short: its writer was stopped"),
        (lambda data: b"", "cut short"),
        (lambda data: b"\x1f\x8b" + data[2:], "it is no tar"),
        (lambda data: data[:8] + b"X" + data[9:], "it is no tar"),
    ],
)
def test_a_damaged_tar_stops_the_run_before_it_starts(
    damage: Any, message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("000"), *sample("001")])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=f"cannot be read as tar: .*{message}"):
        check_inputs([str(path)], ReadConfig())


def test_a_tar_damaged_further_on_than_is_looked_stops_the_run_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.read.tar_rows.PEEKED_SAMPLES", 1)
    path = write_tar(tmp_path / "0.tar", [*sample("000"), *sample("001"), *sample("002")])
    data = bytearray(path.read_bytes())
    place = data.index(b"002.jpg")
    data[place] ^= 1
    path.write_bytes(data)
    check_inputs([str(path)], ReadConfig())
    with pytest.raises(ValueError, match=f"no header of a member at byte {place}"):
        rows(path)


def test_random_damage_never_goes_unnoticed_as_another_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [m for n in range(6) for m in sample(f"{n:03d}")])
    whole = path.read_bytes()
    pictures = {jpeg(sum(f"{n:03d}".encode())) for n in range(6)}
    generator = random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        place = generator.randrange(len(data) // 512) * 512  # a header, or padding
        data[place + generator.randrange(260)] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            found = rows(path)
        except ValueError:
            continue
        images = [TarFiles(10_000).read(row.tar_member) for row in found if row.tar_member]
        changed = [image for image in images if image not in pictures]
        assert len(changed) <= 1  # the flipped bit lay in that image: its decoder judges it


def test_samples_behind_the_end_mark_of_a_tar_stop_the_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample("000"))
    first = path.read_bytes()
    path.write_bytes(first + bytes(100_000))
    assert len(rows(path)) == 1
    path.write_bytes(first + write_tar(path, sample("001")).read_bytes())
    with pytest.raises(ConfigError, match=r"data behind its end mark.*tar -A"):
        check_inputs([str(path)], ReadConfig())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x")], "holds no images"),
        (sample("000", None), "none of the first 1 samples .* captions are looked for"),
        (sample("../000"), "none of the first 1 samples .*leads out of the tar"),
    ],
)
def test_a_tar_of_which_nothing_can_be_used_stops_the_run(
    members: Members, message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(ConfigError, match=message):
        check_inputs([str(path)], ReadConfig())


def test_an_empty_shard_is_read_as_no_rows(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [])
    check_inputs([str(path)], ReadConfig())
    assert rows(path) == []


def test_braces_and_globs_name_tars_without_the_files_that_belong_to_them(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", sample(f"{number}"))
        pq.write_table(pa.table({"key": [str(number)]}), tmp_path / f"{number:05d}.parquet")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    tars = [str(tmp_path / f"{number:05d}.tar") for number in range(3)]
    for pattern, expected in (
        ("{00000..00001}.tar", tars[:2]),
        ("{00000,00002}.tar", [tars[0], tars[2]]),
        ("*", tars),
        ("*.tar", tars),
    ):
        found = check_inputs([f"{tmp_path}/{pattern}"], ReadConfig())
        assert [file.path for file in found] == expected
    with pytest.raises(ConfigError, match=r"00003\.tar does not exist"):
        check_inputs([f"{tmp_path}/{{00000..00003}}.tar"], ReadConfig())
    with pytest.raises(ConfigError, match="braces that do not match"):
        check_inputs([f"{tmp_path}/{{00000..00003.tar"], ReadConfig())


def test_tars_on_another_file_system_are_read_there(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("000"), *sample("001", "a dog")])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards/0.tar", path.read_bytes())
    (file,) = check_inputs(["memory://shards/{0..0}.tar"], ReadConfig())
    found = list(read_tar(file.path, file.table, ReadConfig()))
    assert [row.url for row in found] == [f"{file.path}#00{n}.jpg" for n in range(2)]
    assert TarFiles(10_000).read(str(found[1].tar_member)) == jpeg(sum(b"001"))


def test_a_tar_that_changed_since_it_was_read_stops_the_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample("000"))
    place = str(rows(path)[0].tar_member)
    with pytest.raises(SampleRejected) as caught:
        TarFiles(10).read(place)
    assert caught.value.reason is RejectReason.TOO_MANY_BYTES
    path.write_bytes(bytes(10240))
    with pytest.raises(DatasetError, match="has changed since its pairs were read: no member"):
        TarFiles(10_000).read(place)
    path.unlink()
    with pytest.raises(DatasetError, match="has changed since its pairs were read: it is gone"):
        TarFiles(10_000).read(place)


@pytest.mark.parametrize("other", ["another name", "another length", "another place"])
def test_a_tar_with_other_images_in_its_place_stops_the_run(other: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("000.jpg", bytes(300)), ("000.txt", b"a cat")])
    place = str(rows(path)[0].tar_member)
    assert TarFiles(10_000).read(place) == bytes(300)
    members: dict[str, Members] = {
        "another name": [("001.jpg", bytes(300)), ("001.txt", b"a dog")],
        "another length": [("000.jpg", bytes(301)), ("000.txt", b"a dog")],
        "another place": [("000.txt", b"a dog" * 60), ("000.jpg", bytes(300))],
    }
    write_tar(path, members[other])
    with pytest.raises(DatasetError, match="has changed since its pairs were read: another member"):
        TarFiles(10_000).read(place)


def test_credentials_in_the_path_of_a_tar_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        check_inputs(["memory://user:secret@host/0.tar"], ReadConfig())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("names", [["photo.v1.0.jpg"], ["a.0.jpg", "a.1.jpg"], ["x.y.png"]])
def test_keys_with_dots_are_told_of(names: list[str], tmp_path: Path) -> None:
    members = [(name, picture(1)) for name in names] + [("photo.txt", b"a photo")]
    path = write_tar(tmp_path / "in.tar", members)
    with pytest.raises(ConfigError, match=r"A key ends at the first dot of a name.*rename"):
        check_inputs([str(path)], ReadConfig())


def test_members_that_do_not_stand_together_are_told_of(tmp_path: Path) -> None:
    members = [
        ("a.jpg", picture(1)), ("a.txt", b"a"), ("b.txt", b"b"), ("c.v1.jpg", picture(3)),
        ("c.txt", b"c"), ("b.jpg", picture(2)),
    ]  # fmt: skip
    path = write_tar(tmp_path / "in.tar", members)
    said = [row["detail"] for row in rows_of(path) if row["reason"] == "missing_image"]
    assert any("one after the other in a tar" in detail for detail in said)
    assert any("a key ends at the first dot" in detail for detail in said)
