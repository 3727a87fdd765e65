import logging
import os
import threading
from pathlib import Path

import pytest

from pipeline.job.log import job_log_path, logging_to_folder, lossy_output
from schemas.shards import DatasetLayout


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
    path = job_log_path(layout)
    assert path is not None
    lines = path.read_text().splitlines()
    assert "WARNING apache_beam.runners: first" in lines[0]
    assert lines[1] == "    second"
    assert "a thread of Beam ended with ZeroDivisionError" in lines[2]
    assert len(lines) == 3


def test_a_dataset_on_a_store_has_no_log():
    layout = DatasetLayout("memory://bucket/data")
    assert job_log_path(layout) is None
    with logging_to_folder(layout):
        logging.getLogger("apache_beam").warning("nowhere")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_loses_lines_and_raises_nothing(tmp_path):
    with lossy_output(os.open("/dev/full", os.O_WRONLY)) as file:
        print("lost", file=file)
    path = tmp_path / "log"
    with lossy_output(os.open(path, os.O_WRONLY | os.O_CREAT)) as file:
        print("kept \ud800", file=file)
    assert path.read_bytes().startswith(b"kept ")
