"""`curate --dry-run` as it is typed."""

import dataclasses

import fsspec
import pytest

from pipeline.cli import run
from pipeline.config import CurationConfig
from pipeline.job.dry_run.run import dry_run
from pipeline.job.run import Job
from schemas.errors import ConfigError
from scoring.config import ScoreConfig
from tests.curations import quiet_console

PAIRS = b"url\tcaption\nhttp://a.example/x.png\tx\n"
CLOUD = [
    *(
        "--project",
        "some-project",
        "--region",
        "europe-west4",
        "--temp_location",
        "gs://bucket/tmp",
    ),
    *("--sdk_container_image", "registry/image:1"),
]


@pytest.fixture
def store():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/dry/pairs.tsv", PAIRS)
    yield filesystem
    filesystem.rm("/dry", recursive=True)


def words(*more: str, pairs: str = "memory://dry/pairs.tsv", out: str = "memory://dry/out"):
    return ["curate", "--pairs", pairs, "--out", out, "--dry-run", *more]


def refused(capsys, *arguments: str) -> str:
    assert run(arguments) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_job_for_dataflow_is_shown_with_its_hints_and_gclouds_command(store, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value-of-the-store")
    given = words("--score.device", "cuda", "--levels.num-levels", "4", "--runner", "dataflow")
    assert run([*given, "--", *CLOUD]) == 0
    shown = capsys.readouterr().out
    assert "type:nvidia-l4;count:1" in "".join(shown.split())
    assert "The graph for DataflowRunner; nothing was run" in shown
    assert "gcloud dataflow flex-template run aligngpt-curate" in shown
    assert "settings=--score.device cuda --levels.num-levels 4" in " ".join(shown.split())
    assert store.find("/dry") == ["/dry/pairs.tsv"]


def test_a_local_job_leaves_no_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_bytes(PAIRS)
    given = words("--recipe", "demo", pairs="pairs.tsv", out="out")
    said = refused(capsys, *given, "--score.model", "local-dir:nowhere")
    assert f"{tmp_path}/nowhere: No such file or directory, and the job needs it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_paths_of_this_machine_are_refused_for_dataflow(tmp_path, monkeypatch, capsys, store):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.tsv", "hosts.txt", "ca.pem"):
        (tmp_path / name).write_bytes(PAIRS)
    given = words(pairs="pairs.tsv", out="out")
    lists = ("--read.deny-hosts", "hosts.txt", "--fetch.ca-file", "ca.pem")
    said = refused(capsys, *given, *lists, "--runner", "dataflow", "--", *CLOUD)
    for name in ("out", "pairs.tsv", "hosts.txt", "ca.pem"):
        assert f"{tmp_path}/{name}: " in said


def test_flags_that_dataflow_needs_are_all_named_at_once(store, capsys):
    said = refused(capsys, *words("--runner", "dataflow"))
    for flag in ("--project", "--region", "--temp_location", "--sdk_container_image"):
        assert f"- {flag} is missing after --" in said


@pytest.mark.slow
def test_a_secret_in_a_setting_is_refused_and_not_repeated(store, capsys, monkeypatch):
    secret = "s3cr3t-value-of-the-store"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    settings = ("--recipe", "llava_instructions", "--fetch.user-agent", f"me/{secret}")
    said = refused(capsys, *words(*settings, "--runner", "dataflow"), "--", *CLOUD)
    assert "the value of $AWS_SECRET_ACCESS_KEY would be sent along, in step 'Fetch/" in said
    assert secret not in said


@pytest.mark.parametrize("flag", ["--pairs", "--out", "--levels.edges-from"])
def test_a_url_with_a_password_is_refused_before_it_is_opened(store, capsys, flag):
    url = "s3://AKIAABCDEFGH12345678:s3cr3t/x@bucket/data".replace("/x", "")
    said = refused(capsys, *words("--runner", "dataflow", flag, url), "--", *CLOUD)
    assert "s3://bucket/data was given with a password in it" in said
    assert "s3cr3t" not in said


def test_a_function_in_a_recipe_is_refused_with_the_setting():
    score = dataclasses.replace(ScoreConfig(), precision=lambda: "bf16")
    config = dataclasses.replace(CurationConfig(), score=score)
    job = Job(root="out", config=config, stages=config.stages, has_report=True, files=("x",))
    with pytest.raises(ConfigError, match=r"score.precision is <function .* and numbers alone"):
        dry_run(job, ["curate"], quiet_console())


def test_a_model_that_nobody_publishes_is_refused_with_one_that_is_like_it(store, capsys):
    settings = ("--score.model", "ViT-B-23", "--runner", "dataflow")
    said = refused(capsys, *words(*settings), "--", *CLOUD)
    assert "score.model 'ViT-B-23' is no model of open_clip" in said
