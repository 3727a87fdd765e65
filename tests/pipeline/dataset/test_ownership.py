"""Files that no job of a dataset wrote are never changed or removed, whatever their names."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import run
from pipeline.dataset.ownership import compact, expand, read_record
from pipeline.read.transform import Reading
from schemas.shards import DatasetLayout
from tests.curations import contents, write_pairs
from tests.fetches import picture

MINE = b"nobody else's"

NAMES = [
    "pairs/00000.parquet",
    "pairs/00007.parquet",
    "pairs/00000.csv",
    "pairs/laion.parquet",
    "fetched/00000.tar",
    "fetched/00000_stats.json",
    "scored/00000.parquet",
    "levelled/edges.json",
    "train/000000.tar",
    "train/index.json",
    "rejected/fetch/00000.parquet",
    "_run/read/notes.txt",
    "_run/retry/mine.tar",
    "_run/progress/mine.json",
    "_run/times/mine.json",
]


def addresses(count: int) -> list[tuple[str, str]]:
    return [(f"https://example.com/{number}.jpg", f"picture {number}") for number in range(count)]


@pytest.fixture(scope="module")
def read_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a dataset whose pairs are read: 5 shards of 4 rows, and their input beside it."""
    folder = tmp_path_factory.mktemp("read")
    pairs = write_pairs(folder, addresses(20))
    words = f"read --pairs {pairs} --out {folder}/data --read.pairs-per-shard 4"
    assert run(words.split()) == 0
    return folder


@pytest.fixture
def data(read_folder: Path, tmp_path: Path) -> Path:
    """Returns a copy of it."""
    return Path(shutil.copytree(read_folder / "data", tmp_path / "data"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def every_byte(root: Path) -> dict[str, bytes]:
    """Returns the content of every file of a dataset but of its `_run`."""
    files = [path for path in root.rglob("*") if path.is_file() and "_run" not in path.parts]
    return {str(path): path.read_bytes() for path in files}


def put(root: Path, name: str, content: bytes = MINE) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_users_file_in_a_dataset_stops_every_command_before_work(
    name: str, data: Path, read_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, before = put(data, name), every_byte(data)
    pairs = read_folder / "pairs.tsv"
    settings = "--read.pairs-per-shard 4"
    for words in (
        f"read --pairs {pairs} --out {data} {settings}",
        f"read --pairs {pairs} --out {data} {settings} --redo read",
        f"fetch --out {data}",
        f"retry {data}",
        f"report --out {data}",
    ):
        assert run(words.split()) == 2, words
        said = " ".join(capsys.readouterr().err.split())
        assert name in said and "move them elsewhere" in said
    assert mine.read_bytes() == MINE
    assert every_byte(data) == before


@pytest.mark.parametrize("name", ["report.html", "croissant.json", "manifest.json"])
def test_a_report_is_not_written_over_a_users_file(
    name: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = put(data, name)
    assert run(["report", "--out", str(data)]) == 2
    assert name in capsys.readouterr().err
    assert mine.read_bytes() == MINE


@pytest.mark.slow
def test_files_that_no_stage_would_take_for_its_own_stay_and_stop_nothing(
    data: Path, read_folder: Path
) -> None:
    mine = [put(data, name) for name in ("notes.txt", "train/README.md", "rejected/mine/a.parquet")]
    words = f"read --pairs {read_folder / 'pairs.tsv'} --out {data} --read.pairs-per-shard 4"
    assert run([*words.split(), "--redo", "read"]) == 0
    assert [path.read_bytes() for path in mine] == [MINE] * 3


def laion_table(folder: Path) -> Path:
    path = folder / "pairs" / "00000.parquet"
    path.parent.mkdir(parents=True)
    urls, captions = zip(*addresses(3), strict=True)
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), path)
    return path


@pytest.mark.parametrize(
    "spelling",
    [
        "pairs/*.parquet",
        "pairs/0000{0..0}.parquet",
        "../work/pairs/00000.parquet",
        "linked.parquet",
        "file://{here}/pairs/00000.parquet",
        "{here}/../work/pairs/*",
        "local://{here}/pairs/*",
    ],
)
def test_an_input_that_lies_in_the_output_is_refused_however_it_is_spelt(
    spelling: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "work"
    table = laion_table(here)
    before = table.read_bytes()
    (tmp_path / "linked.parquet").symlink_to(table)
    monkeypatch.chdir(tmp_path if spelling == "linked.parquet" else here)
    pattern = spelling.replace("{here}", str(here))
    assert run(["fetch", "--pairs", pattern, "--out", str(here)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "an input, lies in" in said and "give --out another folder" in said
    assert table.read_bytes() == before
    assert names_in(here) == ["pairs"]


def test_an_input_behind_a_linked_stage_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = laion_table(tmp_path / "laion")
    out = tmp_path / "out"
    out.mkdir()
    (out / "pairs").symlink_to(table.parent)
    assert run(["read", "--pairs", str(table), "--out", str(out)]) == 2
    assert "an input, lies in" in " ".join(capsys.readouterr().err.split())
    assert len(list(table.parent.iterdir())) == 1


def test_a_folder_of_images_that_the_output_lies_in_is_no_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "cat.jpg", picture(1))
    put(tmp_path, "cat.txt", b"a cat")
    (tmp_path / "data").mkdir()
    assert run(["read", "--pairs", str(tmp_path), "--out", str(tmp_path / "data")]) == 2
    assert "give --out a folder outside of it" in " ".join(capsys.readouterr().err.split())


def stopped(read_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the words of a job that died before it noted what it had written."""
    pairs = read_folder / "pairs.tsv"
    words = f"read --pairs {pairs} --out {data} --read.pairs-per-shard 4".split()
    with monkeypatch.context() as stopping:
        stopping.setattr(Reading, "finish", lambda *_: 1 / 0)
        assert run(words) == 1
    return words


@pytest.mark.slow
def test_a_job_that_was_stopped_finds_its_own_files_again(
    read_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    words = stopped(read_folder, data, monkeypatch)
    assert len(list((data / "pairs").iterdir())) == 5
    record = read_record(DatasetLayout(str(data)))
    assert record is not None and "pairs" in record.open and not record.files.get("pairs")
    assert run(words) == 0
    assert contents(data) == contents(read_folder / "data")
    record = read_record(DatasetLayout(str(data)))
    assert record is not None and not record.open and len(record.files["pairs"]) == 5


def test_after_a_kill_a_users_file_is_still_told_from_ours(
    read_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    words = stopped(read_folder, data, monkeypatch)
    mine = put(data, "pairs/00005.parquet")
    assert run(words) == 2
    assert mine.read_bytes() == MINE


@pytest.mark.slow
def test_a_shorter_input_removes_the_shards_of_the_longer_that_are_ours_alone(
    data: Path, tmp_path: Path
) -> None:
    mine = put(data, "fetched/notes.md")
    pairs = write_pairs(tmp_path / "shorter", addresses(6))
    words = f"read --pairs {pairs} --out {data} --read.pairs-per-shard 4"
    assert run(words.split()) == 0
    assert names_in(data / "pairs") == ["00000.parquet", "00001.parquet"]
    assert mine.exists()
    record = read_record(DatasetLayout(str(data)))
    assert record is not None and record.files["pairs"] == {"00000.parquet", "00001.parquet"}


def test_a_dataset_of_before_there_were_records_goes_on(
    curated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(curated[0], tmp_path / "data"))
    (data / "_run" / "files.json").unlink()
    before = contents(data)
    assert run(["report", "--out", str(data)]) == 0
    assert "was made before its files were recorded" in " ".join(capsys.readouterr().out.split())
    assert contents(data) == before
    (data / "_run" / "files.json").unlink()
    shutil.rmtree(data / "_run" / "progress")
    assert run(["report", "--out", str(data)]) == 0, "the files say of themselves what they are"
    (data / "_run" / "files.json").unlink()
    mine = put(data, "train/000099.tar")
    assert run(["report", "--out", str(data)]) == 2
    assert mine.read_bytes() == MINE


def test_the_record_lists_every_file_of_a_dataset(curated) -> None:
    root = curated[0]
    values = json.loads((root / "_run" / "files.json").read_text())
    assert values["open"] == []
    listed: set[str] = set()
    for folder, entries in values["files"].items():
        listed |= {f"{folder}/{name}".lstrip("/") for name in expand(entries)}
    assert listed == set(contents(root))
    assert len(re.findall(r"\d{5}", json.dumps(values))) < len(listed), "runs stand as ranges"


@given(st.sets(st.integers(0, 2_000)), st.sampled_from([".parquet", "_stats.json"]))
def test_ranges_stand_for_the_names_that_they_were_made_of(numbers: set[int], end: str) -> None:
    names = {f"{number + 99_000:05d}{end}" for number in numbers} | {"edges.json"}
    assert expand(compact(names)) == names
