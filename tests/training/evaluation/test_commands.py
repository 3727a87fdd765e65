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
    ],
)
def test_what_belongs_together_is_asked_for(options, message):
    Evaluate(model="m", data=("d",))
    Evaluate(list=True)
    with pytest.raises(ConfigError, match=message):
        Evaluate(**{"model": "m", "data": ("d",), **options})


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"retries": -1}, {"timeout_seconds": 0.0}])
def test_a_judge_is_asked_at_least_once_and_waited_for(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "[-_]")):
        JudgeConfig(**wrong)
