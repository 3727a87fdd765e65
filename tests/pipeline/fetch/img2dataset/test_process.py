"""The process in which img2dataset downloads."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.fetch.img2dataset import engine
from tests.fetches import config
from tests.web_server import WebServer


@pytest.mark.slow
def test_it_ends_with_who_started_it_in_the_middle_of_a_download(
    web_server: WebServer, tmp_path: Path
) -> None:
    is_asked = threading.Event()

    async def never(request: Any, writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        await asyncio.Event().wait()

    table = pa.table({"url": [web_server.route("/never.jpg", never)]})
    with pa.ipc.new_file(tmp_path / "urls.arrow", table.schema) as writer:
        writer.write_table(table)
    job = engine._job(1, "sha256", config(web_server, timeout_seconds=600.0))
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-P", "-m", "pipeline.fetch.img2dataset.process", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert is_asked.wait(300)
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(300) == 1
