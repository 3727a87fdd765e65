"""The documentation can be built as a site, and none of its links leads nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_a_page_for_every_package(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for package, name in (
        ("schemas", "RejectReason"),
        ("pipeline", "curate"),
        ("training", "train"),
    ):
        assert name in (tmp_path / "api" / package / "index.html").read_text()
