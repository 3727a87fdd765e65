"""What a job hands on to workers that are elsewhere."""

import apache_beam as beam
import pytest
from apache_beam.internal import cloudpickle_pickler

from pipeline.cli import job_settings, parse
from pipeline.curate import curate
from pipeline.job.begin import new_pipeline, prepare_worker
from pipeline.job.paths import absolute_config, absolute_inputs, absolute_layout
from pipeline.job.run import Job, with_checked_inputs
from pipeline.job.runners import choose_runner
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout

SECRETS = {"AWS_SECRET_ACCESS_KEY": "of-the-store", "HF_TOKEN": "of-the-hub"}


@pytest.mark.slow
def test_no_secret_and_no_relative_path_is_in_what_a_job_hands_on(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ALIGNGPT_PROXY_CREDENTIALS", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("url\tcaption\nhttp://a.example/x.png\tx\n")
    words = "--pairs pairs.tsv --out made --score.model local-dir:clip --read.image-folder pictures"
    words += " --fetch.proxy http://me:of-the-proxy@proxy:3128"
    (tmp_path / "pictures").mkdir()
    job = with_checked_inputs(Job(**job_settings(parse(["curate", *words.split()]))))
    pipeline = beam.Pipeline("FnApiRunner")
    curate(
        pipeline,
        absolute_layout(DatasetLayout(job.root)),
        absolute_config(job.config),
        job.stages,
        absolute_inputs(job.inputs),
    )
    handed_on = handed_on_by(pipeline, monkeypatch)
    for secret in (*SECRETS.values(), "of-the-proxy"):
        assert secret.encode() not in handed_on
    for path in ("pairs.tsv", "made", "clip", "pictures"):
        assert f"{tmp_path}/{path}".encode() in handed_on


def handed_on_by(pipeline: beam.Pipeline, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Returns the graph as it goes to workers, and what is pickled in it before it is packed."""
    pickles: list[bytes] = []
    dump = cloudpickle_pickler._dumps

    def recorded(*arguments, **settings):
        pickles.append(dump(*arguments, **settings))
        return pickles[-1]

    monkeypatch.setattr(cloudpickle_pickler, "_dumps", recorded)
    graph = pipeline.to_runner_api().SerializeToString()
    assert pickles
    return b"".join([graph, *pickles])


def test_a_worker_of_another_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="another version of aligngpt than this job"):
        prepare_worker(DatasetLayout(str(tmp_path)), "token", (), "another code")


def test_flags_that_a_runner_does_not_take_are_refused_before_work():
    chosen = choose_runner("DataflowRunner", 1, ("--region=x",), DatasetLayout("gs://b/d"))
    with pytest.raises(ConfigError, match="DataflowRunner does not accept the flags after --"):
        new_pipeline(chosen)
