import pytest

from training.cli import run
from training.evaluation.catalogue import benchmarks


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    for chosen in benchmarks().values():
        assert chosen.name in printed and chosen.title in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--submission", "sent.json"), "POPE has no server: score it here"),
        (("--split", "val"), "POPE has one split here"),
    ],
)
def test_what_a_benchmark_has_not_is_refused(
    flags: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", "pope", "--data", "d", "--predictions", "p.jsonl", *flags]) == 2
    assert said in capsys.readouterr().err


def test_benchmarks_of_several_splits_take_one() -> None:
    found = [chosen.name for chosen in benchmarks().values() if chosen.has_splits]
    assert found == ["vqav2", "vizwiz", "scienceqa", "mmbench", "mmbench_cn", "seed"]
