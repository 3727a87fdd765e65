"""The flex template stands for command lines that our own parser takes."""

import json
import os
import re
import subprocess
import sys

import pytest

from pipeline.cli import parse, split_beam_flags
from pipeline.job.template import (
    PARAMETERS,
    command_line,
    parameters_of,
    template_metadata,
)
from schemas.errors import ConfigError
from tests.curations import ROOT

WORDS = [
    *("curate", "--pairs", "gs://b/in/1.tsv", "gs://b/in/2*.parquet", "--out", "gs://b/data"),
    *("--recipe", "demo", "--score.device", "cuda", "--levels.num-levels=4"),
    *("--fetch.user-agent", "mine/1.0 (it's me)"),
]


def as_dataflow_gives_them(parameters: dict[str, str]) -> list[str]:
    service = ["--runner=DataflowRunner", "--project=p", "--template_location=gs://b/staging/x"]
    return [*(f"--{name}={value}" for name, value in parameters.items()), *service]


def test_the_metadata_beside_the_launcher_is_what_the_code_says():
    assert json.loads((ROOT / "docker" / "flex_template.json").read_text()) == template_metadata()


def test_parameters_stand_for_the_command_line_that_they_were_made_from():
    given = as_dataflow_gives_them(parameters_of(WORDS))
    words, beam_flags = split_beam_flags(command_line(given))
    command, wanted = parse(words), parse(WORDS)
    assert command.config == wanted.config
    assert (command.pairs, command.out) == (wanted.pairs, wanted.out)
    assert (command.runner, command.dry_run) == ("DataflowRunner", False)
    assert beam_flags == ["--project=p", "--template_location=gs://b/staging/x"]


def test_what_is_for_submitting_from_here_is_no_parameter():
    words = [*WORDS, "--runner", "dataflow", "--dry_run"]
    assert parameters_of(words) == parameters_of(WORDS)


def test_each_pattern_of_the_metadata_takes_what_it_is_for():
    given = {**parameters_of(WORDS), "sdk_container_image": "europe-docker.pkg.dev/p/r/i:1"}
    assert given.keys() == {parameter.name for parameter in PARAMETERS}
    for parameter in PARAMETERS:
        assert not parameter.pattern or re.fullmatch(parameter.pattern, given[parameter.name])
    patterns = {parameter.name: parameter.pattern for parameter in PARAMETERS}
    assert not re.fullmatch(patterns["pairs"], "/home/me/pairs.tsv")
    assert not re.fullmatch(patterns["out"], "s3://b/data")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pairs=gs://b/x.tsv"], "parameter 'out' is missing"),
        (["--pairs= ", "--out=gs://b/d"], "parameter 'pairs' is missing"),
        (["--pairs=gs://b/x", "--out=gs://b/d", "--settings=--a 'b"], "'settings': No closing"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(arguments, said):
    with pytest.raises(ConfigError, match=said):
        command_line(arguments)


def test_a_path_with_a_space_cannot_be_a_parameter():
    with pytest.raises(ConfigError, match="--out: a path with a space"):
        parameters_of(["curate", "--pairs", "gs://b/x", "--out", "gs://b/my data"])


def test_the_launcher_says_what_is_missing():
    launcher = [sys.executable, str(ROOT / "docker" / "flex_launcher.py"), "--pairs=gs://b/x"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the template's parameter 'out' is missing" in done.stderr
