import dataclasses
import subprocess
import sys

import pytest

from pipeline.cli import job_settings, parse, run, split_beam_flags
from pipeline.commands import COMMANDS
from pipeline.config import CurationConfig
from pipeline.dataset.guard import guard_folder
from pipeline.recipes import RECIPES
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import LevelConfig, ScoreConfig


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    first_line = COMMANDS[command].__doc__.splitlines()[0]
    assert first_line in " ".join(shown.split())


def test_without_arguments_the_commands_are_listed(capsys):
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_help_needs_neither_beam_nor_torch():
    program = (
        "import sys; from pipeline.cli import parse\n"
        "try: parse(['curate', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'apache_beam', 'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "set()\n"


@pytest.mark.slow
def test_a_job_waits_for_torch_only_if_it_scores_or_searches(tmp_path):
    (tmp_path / "pairs.tsv").write_text("url\tcaption\nhttp://127.0.0.1:9/a.png\ta picture\n")
    program = (
        "import sys; from pipeline.cli import run; from pipeline.job import worker\n"
        f"assert run(['read', '--pairs', '{tmp_path}/pairs.tsv', '--out', '{tmp_path}/out']) == 0\n"
        "slow = {'torch', 'open_clip', 'faiss', 'transformers', 'img2dataset'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_flags_override_the_recipe():
    words = (
        "curate --pairs a.tsv b.tsv --out data --recipe demo --levels.num-levels 4 "
        "--fetch.allow-networks 127.0.0.2/32 10.1.0.0/16 --fetch.allow-ports 8080 8443"
    )
    command = parse(words.split())
    recipe = RECIPES["demo"]()
    assert command.pairs == ("a.tsv", "b.tsv")
    assert command.config.levels.num_levels == 4
    assert command.config.fetch.allow_networks == ("127.0.0.2/32", "10.1.0.0/16")
    assert command.config.fetch.allow_ports == (8080, 8443)
    assert command.config.score == recipe.score


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_its_own_configuration(name):
    command = parse(f"curate --pairs a.tsv --out data --recipe {name}".split())
    assert command.config == RECIPES[name]()


def test_a_stage_alone_goes_on_with_the_configuration_of_its_folder(tmp_path):
    made_with = CurationConfig(
        score=ScoreConfig(model="ViT-B-32"), levels=LevelConfig(num_levels=5)
    )
    guard_folder(DatasetLayout(str(tmp_path)), made_with, list(Stage), {})
    command = parse(["level", "--out", str(tmp_path), "--levels.minimum-score", "0.2"])
    settings = job_settings(command)
    assert settings["stages"] == (Stage.LEVEL,)
    assert settings["config"] == dataclasses.replace(
        made_with, levels=LevelConfig(num_levels=5, minimum_score=0.2)
    )


def test_fetch_reads_first_when_it_is_given_pairs(tmp_path):
    read_first = parse(["fetch", "--pairs", "a.tsv", "--out", str(tmp_path)])
    assert job_settings(read_first)["stages"] == (Stage.READ, Stage.FETCH)
    alone = parse(["fetch", "--out", str(tmp_path)])
    assert job_settings(alone)["stages"] == (Stage.FETCH,)


def test_instruction_samples_skip_what_needs_a_score():
    command = parse(
        ["curate", "--pairs", "a.json", "--out", "data", "--recipe", "llava_instructions"]
    )
    assert job_settings(command)["stages"] == (Stage.READ, Stage.FETCH, Stage.PACK)


def test_what_stands_after_two_dashes_is_for_the_runner():
    assert split_beam_flags(["read", "--out", "d", "--", "--job_name=x"]) == (
        ["read", "--out", "d"],
        ["--job_name=x"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "no command 'unknown'"),
        (["score", "--out", "data", "--recipe", "best"], "no recipe 'best'"),
        (
            ["level", "--out", "data", "--levels.num-levels", "300"],
            "levels.num_levels must be in 2..127",
        ),
        (
            ["curate", "--pairs", "a.tsv", "--out", "data", "--score.no-keep-embeddings"],
            "score.keep_embeddings is False",
        ),
        (
            ["curate", "--pairs", "a.tsv", "--out", "data", "--runner", "DaskRunner"],
            "it loses data in silence",
        ),
    ],
)
def test_a_wrong_configuration_is_one_clear_message_and_status_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_every_configuration_that_cannot_be_parsed_is_an_error_of_the_command_line():
    with pytest.raises(ConfigError, match="no command"):
        parse(["--out"])


@pytest.mark.parametrize(
    "command",
    [["pack", "--out"], ["report", "--out"], ["verify"], ["inspect"], ["retry"], ["rescore"]],
)
def test_a_folder_that_is_not_there_or_a_file_is_said_to_be_and_not_made(command, tmp_path, capsys):
    folder, file = tmp_path / "nosuch", tmp_path / "pairs.tsv"
    assert run([*command, str(folder)]) == 2
    assert f"there is no folder {folder}" in capsys.readouterr().err
    assert not folder.exists()
    file.touch()
    assert run([*command, str(file)]) == 2
    assert f"{file} is a file: give" in capsys.readouterr().err


def test_scoring_looks_for_pairs_before_it_looks_for_a_model(tmp_path, capsys):
    words = ["score", "--out", str(tmp_path), "--score.model", "local-dir:nowhere"]
    assert run(words) == 2
    assert f"{tmp_path} has no pairs" in capsys.readouterr().err


def test_a_report_of_a_folder_that_is_no_dataset_leaves_it_as_it_is(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["report", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no dataset" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
