"""A graph is unpickled in a fresh process, which has installed packages alone."""

import importlib
import sys

import apache_beam as beam
import pytest

from pipeline.job.dry_run.elsewhere import faults_elsewhere


@pytest.mark.slow
def test_what_only_this_process_can_import_is_named_with_its_step(tmp_path, monkeypatch):
    """One step's function, and one that the configuration names, lie in a file of the user's."""
    (tmp_path / "own_functions.py").write_text("def double(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own_functions = importlib.import_module("own_functions")

    pipeline = beam.Pipeline(runner="FnApiRunner")
    numbers = pipeline | beam.Create([1])
    _ = numbers | "Here" >> beam.Map(lambda number: number + 1)
    _ = numbers | "Double" >> beam.Map(own_functions.double)
    functions = ["own_functions:double", "json:dumps", "json:dampf"]
    faults = faults_elsewhere(pipeline.to_runner_api(), functions)
    del sys.modules["own_functions"]
    assert faults == [
        f"{what} cannot be loaded on a worker ({why}): install what it needs there"
        for what, why in (
            ("step 'Double'", "ModuleNotFoundError: No module named 'own_functions'"),
            (
                "function 'own_functions:double'",
                "ModuleNotFoundError: No module named 'own_functions'",
            ),
            ("function 'json:dampf'", "AttributeError: module 'json' has no attribute 'dampf'"),
        )
    ]
