"""The README says what is there."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_file_map_has_a_line_for_every_file():
    spec = importlib.util.spec_from_file_location("file_map", ROOT / "docs" / "file_map.py")
    assert spec is not None and spec.loader is not None
    file_map = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file_map)
    written = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert file_map.page() == written, "run: python docs/file_map.py"


def test_every_page_and_picture_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_readme_can_be_read_at_one_sitting():
    assert len(README.splitlines()) <= 200


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
