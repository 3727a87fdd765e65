import hashlib
import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import run
from pipeline.dataset.deny import DenyFiles
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.purge import rewrite
from pipeline.purge.run import purge_dataset
from pipeline.report.verify import verify_dataset
from pipeline.select.run import Selection, make_selection
from schemas.errors import ConfigError, DatasetError, RejectReason, SampleRejected
from schemas.manifest import Manifest
from schemas.records import PAIR_COLUMNS, Pair
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file
from schemas.terminal import Console
from tests.curations import quiet_console
from tests.datasets import jpeg


def rows_of(root: Path, folder: str) -> list[dict]:
    paths = sorted((root / folder).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def deny_files(folder: Path, root: Path) -> tuple[DenyFiles, set[str]]:
    """Returns lists that name pairs by address, download and picture, and two never fetched."""
    rows = rows_of(root, "train")
    by_url, by_sha, by_bytes = rows[2], rows[20], rows[30]
    (folder / "urls").write_text(f"{by_url['url']}\nhttps://images.example/gone\n")
    stored = jpeg(int(by_bytes["key"][:8], 16))
    (folder / "hashes").write_text(f"{by_sha['sha256']}\n{hashlib.md5(stored).hexdigest()}\n")
    keys = {row["key"] for row in (by_url, by_sha, by_bytes)} | {f"{n:032x}" for n in (0, 1)}
    return DenyFiles(urls=(str(folder / "urls"),), hashes=(str(folder / "hashes"),)), keys


def copy_of(whole: Path, folder: Path) -> Path:
    root = folder / "data"
    shutil.copytree(whole, root)
    (root / "_run" / "logs").mkdir(parents=True, exist_ok=True)
    text = "fine\nfetching https://images.example/gone failed\n"
    (root / "_run" / "logs" / "job.log").write_text(text)
    return root


def check_purged(root: Path, keys: set[str], before: Path) -> None:
    verify_dataset(str(root))
    for folder in ("pairs", "fetched", "scored", "unique", "levelled", "train"):
        found = {row["key"] for row in rows_of(root, folder)}
        assert found == {row["key"] for row in rows_of(before, folder)} - keys
    rejected = {row["key"]: row for row in rows_of(root, "rejected/read")}
    assert rejected.keys() == keys
    assert {(row["url"], row["caption"]) for row in rejected.values()} == {(None, None)}
    assert not {row["key"] for row in rows_of(root, "rejected/fetch")} & keys
    for path in root.rglob("*.tar"):
        fetched = {key for key in keys if not key.startswith("000000")}  # zeros stand anywhere
        assert not any(key.encode() in path.read_bytes() for key in fetched)
    manifest = Manifest.from_json((root / "manifest.json").read_text())
    assert (manifest.rows_in, manifest.kept) == (42, 35)
    assert (manifest.rejected["denied_url"], manifest.rejected["denied_hash"]) == (3, 2)


@pytest.mark.slow
def test_what_is_denied_is_gone_from_every_file(whole, tmp_path):
    root = copy_of(whole, tmp_path)
    files, keys = deny_files(tmp_path, whole)
    purge_dataset(str(root), files, quiet_console())
    check_purged(root, keys, whole)
    assert (root / "_run" / "logs" / "job.log").read_text() == "fine\n"
    untouched = root / "fetched" / "00000.tar"
    unchanged = (root / "train" / "000002.tar").read_bytes()
    purge_dataset(str(root), files, quiet_console())
    check_purged(root, keys, whole)
    assert untouched.exists() and unchanged == (root / "train" / "000002.tar").read_bytes()


@pytest.mark.parametrize("writes", [1, 4, 9, 14, 18])
def test_a_purge_that_was_stopped_is_finished_by_the_next(whole, tmp_path, monkeypatch, writes):
    root = copy_of(whole, tmp_path)
    files, keys = deny_files(tmp_path, whole)
    left = [writes]

    def dying(path):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return commit_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "commit_file", dying)
        with pytest.raises(KeyboardInterrupt):
            purge_dataset(str(root), files, quiet_console())
    purge_dataset(str(root), files, quiet_console())
    check_purged(root, keys, whole)


def test_what_fetching_refused_is_gone_from_the_pairs_too(whole, tmp_path):
    root = copy_of(whole, tmp_path)
    layout = DatasetLayout(str(root))
    refusals = (RejectReason.DENIED_REDIRECT, RejectReason.DENIED_HASH)
    for shard, reason in enumerate(refusals):
        gone = pq.read_table(layout.pairs(shard)).to_pylist()[0]
        pair = Pair(**{name: gone[name] for name in PAIR_COLUMNS})
        refused = rejection(pair, SampleRejected(reason, "on a deny-list"))
        write_rejections(layout, Stage.FETCH, shard, [refused], "f")
    (tmp_path / "hosts").write_text("elsewhere.example\n")
    purge_dataset(str(root), DenyFiles(hosts=(str(tmp_path / "hosts"),)), quiet_console())
    keys = {f"{number:032x}" for number in (0, 1)}
    rejected = {row["key"]: row for row in rows_of(root, "rejected/read")}
    assert [rejected[key]["reason"] for key in sorted(keys)] == [one.value for one in refusals]
    assert all(row["url"] is None and row["caption"] is None for row in rejected.values())
    assert not keys & {row["key"] for row in rows_of(root, "pairs")}
    assert rows_of(root, "rejected/fetch") == []
    assert len(rows_of(root, "train")) == 38
    verify_dataset(str(root))
    said = io.StringIO()
    console = Console(file=said, width=200)
    purge_dataset(str(root), DenyFiles(hosts=(str(tmp_path / "hosts"),)), console)
    assert said.getvalue().startswith("0 pairs are denied.")


def test_a_selection_is_purged_too(whole, tmp_path):
    root = tmp_path / "chosen"
    selection = Selection(command="select", parents=(str(whole),), where="width = 24")
    make_selection(selection, str(root), quiet_console())
    files, keys = deny_files(tmp_path, whole)
    purge_dataset(str(root), files, quiet_console())
    verify_dataset(str(root))
    assert len(rows_of(root, "train")) == 35
    assert not keys & {row["key"] for row in rows_of(root, "train")}


def test_what_still_stands_is_named_and_wrong_commands_are_refused(whole, tmp_path, capsys):
    root = copy_of(whole, tmp_path)
    files, _ = deny_files(tmp_path, whole)
    (root / "notes.txt").write_text("see https://images.example/gone")
    with pytest.raises(DatasetError, match=r"still holds .*notes\.txt: https://images"):
        purge_dataset(str(root), files, quiet_console())
    with pytest.raises(ConfigError, match="give --deny-urls"):
        purge_dataset(str(root), DenyFiles(), quiet_console())
    assert run(["purge", str(tmp_path / "nowhere"), "--deny-urls", str(tmp_path / "urls")]) == 2
    assert "is no finished dataset" in capsys.readouterr().err


def test_a_dataset_of_which_all_is_denied_keeps_no_page_of_it(whole, tmp_path, capsys):
    root = copy_of(whole, tmp_path)
    (tmp_path / "hosts").write_text("images.example\n")
    purge_dataset(str(root), DenyFiles(hosts=(str(tmp_path / "hosts"),)), quiet_console())
    assert rows_of(root, "train") == []
    assert Manifest.from_json((root / "manifest.json").read_text()).kept == 0
    captions = {row["caption"] for row in rows_of(whole, "train")}
    page = (root / "report.html").read_text()
    assert not any(caption in page for caption in captions)
    verify_dataset(str(root))
    assert run(["publish", str(root), "--out", str(tmp_path / "out")]) == 2
    assert "holds no samples to publish" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
