"""Commands that measure a model, told what cannot be."""

import pytest

from schemas.errors import ConfigError
from training.evaluation.commands import Evaluate, JudgeConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "evaluate needs a model folder"),
        ({"data": ()}, "--data is missing"),
        ({"benchmarks": ("pope",)}, "give one folder as --data, and one as --out"),
        ({"benchmarks": ("pope",), "data": ("a", "b"), "out": "o"}, "give one folder as --data"),
        ({"batch_size": 0}, "--batch-size and --processes must be positive"),
        ({"limit": -1}, "--limit not negative"),
        ({"processes": 0}, "--batch-size and --processes must be positive"),
        ({"samples": -1}, "--samples must be at least 0, got -1"),
        ({"limit": 3}, "--limit is for --benchmarks, and changes nothing of a loss"),
        ({"chat_template": "vicuna_v1"}, "--chat-template is for --benchmarks"),
        ({"judge": JudgeConfig(url="http://a")}, "--judge is for --benchmarks"),
        ({"out": "o"}, "--out is for --benchmarks and --told-level"),
        (
            {"benchmarks": ("pope",), "out": "o", "form": "caption"},
            "--form is for the loss on a dataset: leave --benchmarks out",
        ),
    ],
)
def test_what_belongs_together_is_asked_for(options, message):
    Evaluate(model="m", data=("d",))
    Evaluate(model="m", data=("d",), told_level=(1,), out="o")
    Evaluate(list=True)
    with pytest.raises(ConfigError, match=message):
        Evaluate(**{"model": "m", "data": ("d",), **options})


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"retries": -1}, {"timeout_seconds": float("nan")}])
def test_a_judge_is_asked_at_least_once_and_waited_for(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "[-_]")):
        JudgeConfig(**wrong)
