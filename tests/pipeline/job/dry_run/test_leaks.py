from pathlib import Path

import apache_beam as beam
import pytest

from pipeline.job.dry_run.leaks import leaks_of, places_of

SECRET = "s3cr3t-value-of-the-store"


@pytest.fixture(autouse=True)
def own_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("SOME_TOKEN", "true")  # a switch, as TOKENIZERS_PARALLELISM is
    monkeypatch.setenv("PWD", "http://a.example:80")  # where this process works


@pytest.mark.parametrize(
    "text",
    [
        f"x{SECRET}x",
        "AKIA" + "ABCDEFGH12345678",
        "hf_" + "a" * 34,
        "s3://me:secret@bucket/x",
        "https://b.s3.example/x?X-Amz-Signature=" + "0" * 64,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_is_found_in_a_step_and_not_repeated(text):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([1]) | "Ask" >> beam.Map(max, len(text), default=text)
    faults = leaks_of(places_of(pipeline.to_runner_api(), {}), None)
    assert [fault for fault in faults if "would be sent along, in step 'Ask'" in fault] == faults
    assert len(faults) == 1
    assert text not in faults[0]
    assert SECRET not in faults[0]


def test_a_secret_in_a_flag_of_beam_is_found():
    places = places_of(beam.Pipeline(runner="FnApiRunner").to_runner_api(), {"job_name": SECRET})
    assert leaks_of(places, None) == [
        "the value of $AWS_SECRET_ACCESS_KEY would be sent along, in Beam's flag --job_name"
    ]


def test_what_is_no_secret_is_left():
    texts = (
        b"TOKENIZERS_PARALLELISM=true abfs://container@account.dfs/x AKIAshort hf_short "
        b"http://a.example:80/@me"
    )
    assert leaks_of({"here": texts}, ()) == []


def test_a_path_of_this_machine_is_found_unless_workers_share_it(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    data, home, work = f"{tmp_path}/work/data", f"{tmp_path}/me/.cache/x", f"{tmp_path}/work"
    text = f"{data}/train\0{home}\n{work}".encode()
    found = leaks_of({"here": text}, [data])
    names = [fault.partition(" (")[0] for fault in found]
    assert names == ["the home folder", "the working folder"]
    assert leaks_of({"here": text}, [data, home, work]) == []
    assert leaks_of({"here": text}, None) == []
    assert leaks_of({"here": f"{work}er/x gs:/{work}".encode()}, ()) == []
