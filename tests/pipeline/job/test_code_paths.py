import sys

import apache_beam as beam

from pipeline.job.code_paths import forget_code_paths, path_in_packages
from pipeline.job.dry_run.pickles import pickles_of


def test_a_file_is_named_by_its_place_in_its_package(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/home/me/site", "/home/me/site/nested", ""])
    assert path_in_packages("/home/me/site/beam/core.py") == "beam/core.py"
    assert path_in_packages("/home/me/site/nested/x/y.py") == "x/y.py"
    assert path_in_packages("/elsewhere/own/script.py") == "script.py"
    assert path_in_packages("<string>") == "<string>"


def test_the_code_of_a_lambda_does_not_say_where_it_was_written():
    forget_code_paths()
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([1]) | "Add" >> beam.Map(lambda number: number + 1)
    found = {one.owner: one.plain for one in pickles_of(pipeline.to_runner_api())}
    assert b"test_code_paths.py" in found["Add"]
    assert not [owner for owner, data in found.items() if b"site-packages" in data]
    assert not [owner for owner, data in found.items() if __file__.encode() in data]
