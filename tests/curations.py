"""Whole curations for tests: the command in a process of its own, and the bytes that it made."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import CurationConfig
from pipeline.dataset.ownership import FolderRecord
from pipeline.job.run import Job, run_job
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.warm_commands import WarmProcess, start_warm

Running = subprocess.Popen[str] | WarmProcess
"""A command in a process of its own."""

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"
INSTRUCTIONS = ROOT / "examples" / "instructions"
COMMAND = Path(sys.executable).parent / "aligngpt-curate"

FOLDERS = (
    *("pairs", "fetched", "scored", "unique"),
    *("levelled", "recaptioned", "train", "rejected"),
)

TIMES = ("duration", "start_time", "end_time")
"""Fields of a shard's statistics that tell when and how long, and so differ from run to run.

So does the name of the session that retried it.
"""


def write_pairs(folder: Path, rows: Iterable[tuple[str, str]]) -> Path:
    """Returns a new TSV file with these URLs and captions."""
    path = folder / "pairs.tsv"
    folder.mkdir(exist_ok=True)
    lines = [f"{url}\t{caption}\n" for url, caption in [("url", "caption"), *rows]]
    path.write_text("".join(lines))
    return path


def curate(
    config: CurationConfig,
    pairs: Path | str,
    root: Path | str,
    stages: Sequence[Stage] | None = None,
    **settings: Any,
) -> tuple[Manifest | None, str]:
    """Returns the manifest of a curation in this process, and what it said."""
    written = io.StringIO()
    job = Job(
        root=str(root),
        config=config,
        stages=config.stages if stages is None else tuple(stages),
        files=(str(pairs),),
        has_report=stages is None,
        **settings,
    )
    return run_job(job, Console(file=written, width=200)), written.getvalue()


def quiet_console() -> Console:
    """Returns a console that nobody sees."""
    return Console(file=io.StringIO())


def start_command(
    flags: Sequence[str],
    pairs: Path | str,
    root: Path | str,
    workers: int,
    beam_flags: Sequence[str] = (),
    is_warm: bool = True,
    **environment: str,
) -> Running:
    """Returns the running `aligngpt-curate curate`, in a process group of its own.

    Args:
        is_warm: whether to fork it and its workers. They are started, whole, if not, or if the
            job has an environment of its own, which a start may depend on.
    """
    words = ["--pairs", str(pairs), "--out", str(root), "--workers", str(workers), *flags]
    return start_words(["curate", *words, *beam_flags], is_warm, **environment)


def start_words(words: Sequence[str], is_warm: bool = True, **environment: str) -> Running:
    """Returns the running `aligngpt-curate` with these words, in a process group of its own.

    Args:
        is_warm: whether to fork it from a process that has its libraries loaded, and its workers
            unless the environment is its own.
    """
    own = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    if is_warm:
        workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 1
        forked = workers if workers > 1 and not environment else 0
        return start_warm("pipeline.cli", words, own, workers=forked)
    return subprocess.Popen(
        [str(COMMAND), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=own,
    )


def finish(process: Running) -> tuple[int, str]:
    """Returns the exit status of a command, and what it said as one line."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode is not None
    return process.returncode, " ".join(said.split())


def kill(process: Running) -> None:
    """Ends a job and all of its processes at once; it may have ended by itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for_progress(process: Running, root: Path, stage: Stage) -> None:
    """Returns once a stage has begun, or the process has ended."""
    while process.poll() is None:
        if any((root / "_run" / "progress").glob(f"{stage.value}-*.json")):
            return
        time.sleep(0.02)


def record_of(layout: DatasetLayout) -> FolderRecord:
    """Returns a record that takes every file of a folder for the dataset's own."""
    record = FolderRecord(layout)
    root = Path(layout.root)
    for path in root.rglob("*"):
        if path.is_file():
            folder = path.parent.relative_to(root).as_posix().removeprefix(".")
            record.files.setdefault(folder, set()).add(path.name)
    return record


def contents(root: Path) -> dict[str, str]:
    """Returns the hash of every file of a dataset, times left out where a file tells them."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    files += [path for path in root.iterdir() if path.is_file()]
    return {str(path.relative_to(root)): hash_of(path) for path in files}


def hash_of(path: Path) -> str:
    """Returns the hash of a file's bytes, or of what it says besides times."""
    data = path.read_bytes()
    if path.name.endswith("_stats.json"):
        values = {name: value for name, value in json.loads(data).items() if name not in TIMES}
        values.get("retry", {}).pop("token", None)
        data = json.dumps(values).encode()
    elif path.name == "report.html":
        said = re.sub(rb"[\d.]+ worker seconds,\s+\d+ pairs a second and worker", b"", data)
        data = re.sub(rb"<title>.*?</title>|<h1>.*?</h1>", b"", said)
    return hashlib.sha256(data).hexdigest()
