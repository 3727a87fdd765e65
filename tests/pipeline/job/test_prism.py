"""Beam's runner in Go, a second reading of the same graph, makes the bytes of our own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beam_services import curate_elsewhere, listens, pool_words, running
from tests.curations import contents
from tests.web_server import unused_port

PRISM = os.environ.get("PRISM") or shutil.which("prism")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PRISM is None,
        reason="needs Prism on the path, or its file in PRISM: go install "
        "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0",
    ),
]


@pytest.fixture
def prism_flags() -> Iterator[list[str]]:
    """Returns Beam's flags for Prism and a pool of workers, both of this machine."""
    job_port, pool_port = unused_port("127.0.0.1"), unused_port("127.0.0.1")
    prism = [str(PRISM), f"--job_port={job_port}", "--serve_http=false"]

    def are_ready() -> bool:
        return listens(job_port) and listens(pool_port)

    with running([prism, pool_words(pool_port)], are_ready):
        yield [
            "--",
            f"--job_endpoint=127.0.0.1:{job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{pool_port}",
        ]


def test_prism_makes_the_bytes_of_one_worker(flags, rows, curated, prism_flags, tmp_path: Path):
    root = curate_elsewhere(flags, rows, prism_flags, tmp_path, seed=4)
    assert contents(root) == contents(curated[0])
