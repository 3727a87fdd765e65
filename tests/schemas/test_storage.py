"""Paths that are good everywhere, and a fence around changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.storage import absolute_path


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("a/../b.tsv", "/work/b.tsv"),
        ("/x/y", "/x/y"),
        ("file:///x/y/", "/x/y"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("~/a", "/home/me/a"),
    ],
)
def test_a_path_is_made_absolute_and_a_url_stays(monkeypatch, given, absolute):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    assert absolute_path(given) == absolute


CHANGES = {
    "commit": "commit_text(folder + '/x', 'late')",
    "remove": "remove(folder + '/x')",
    "move": "move_file(folder + '/x', folder + '/y')",
    "remove_folder": "remove_folder(folder)",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_check_that_ends_the_process_comes_before_every_change(tmp_path: Path, change: str):
    (tmp_path / "x").write_text("of the next one")
    program = (
        "import os\n"
        "from schemas.storage import *\n"
        f"folder = {str(tmp_path)!r}\n"
        "check_before_changes(lambda: os._exit(7))\n"
        f"{change}\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
    assert [path.read_text() for path in tmp_path.glob("[!.]*")] == ["of the next one"]
