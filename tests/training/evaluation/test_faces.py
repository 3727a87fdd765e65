import pytest

from training.cli import run
from training.evaluation.catalogue import benchmarks


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    for chosen in benchmarks().values():
        assert chosen.name in printed and chosen.title in printed
