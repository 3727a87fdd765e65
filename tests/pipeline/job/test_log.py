import logging
import os
import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.job.log import job_log, logging_to_folder, lossy_output
from schemas.shards import DatasetLayout
from schemas.storage import exists, read_bytes


def test_what_libraries_and_threads_say_goes_to_the_log_and_only_while_the_job_runs(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    handlers = list(logging.getLogger().handlers)
    with logging_to_folder(layout):
        logging.getLogger("apache_beam.runners").warning("first\nsecond")
        thread = threading.Thread(target=lambda: 1 / 0, name="a thread of Beam")
        thread.start()
        thread.join()
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("apache_beam").propagate
    logging.getLogger("apache_beam").error("too late")
    lines = Path(job_log(layout)).read_text().splitlines()
    assert "WARNING apache_beam.runners: first" in lines[0]
    assert lines[1] == "    second"
    assert "a thread of Beam ended with ZeroDivisionError" in lines[2]
    assert len(lines) == 3


def test_the_log_of_a_dataset_on_a_store_is_there_when_the_job_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    layout = DatasetLayout("memory://logs/data")
    with logging_to_folder(layout):
        pass
    assert not exists(job_log(layout))
    for text in ("first", "second"):
        with logging_to_folder(layout):
            logging.getLogger("apache_beam").warning(text)
    lines = read_bytes(job_log(layout)).decode().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_reach_its_store_stays_on_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with logging_to_folder(DatasetLayout("memory://logs/away")):
        logging.getLogger("apache_beam").warning("kept here")
        monkeypatch.setattr(MemoryFileSystem, "exists", cut_off)
    [log] = tmp_path.iterdir()
    assert "kept here" in log.read_text()
    assert f"the log of this job is in {log}" in capsys.readouterr().err


def cut_off(*_: object, **__: object) -> bool:
    raise RuntimeError("Could not connect to the endpoint URL")  # botocore's are of no kind


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_loses_lines_and_raises_nothing(tmp_path):
    with lossy_output(os.open("/dev/full", os.O_WRONLY)) as file:
        print("lost", file=file)
    path = tmp_path / "log"
    with lossy_output(os.open(path, os.O_WRONLY | os.O_CREAT)) as file:
        print("kept \ud800", file=file)
    assert path.read_bytes().startswith(b"kept ")
