"""What `serve` takes, and what it does not."""

import pytest

from schemas.errors import ConfigError
from training.serve.commands import Limits, Serve


@pytest.mark.parametrize("name", [*vars(Limits())])
def test_every_limit_is_of_something(name):
    with pytest.raises(ConfigError, match=f"limits.{name} must be a positive number"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 3}, r"batch-size must be at least limits.answers \(4\), got 3"),
        ({"waiting": 0}, "waiting must be at least 1"),
        ({"port": 65536}, r"port must be in 0..65535, got 65536"),
        ({"port": -1}, r"port must be in 0..65535, got -1"),
    ],
)
def test_numbers_out_of_their_range_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Serve(model="m", **wrong)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("example.org", False)],
)  # fmt: skip
def test_this_machine_alone_reaches_its_own_addresses(host, is_local):
    assert Serve(model="m", host=host).is_local is is_local


@pytest.mark.parametrize(
    ("model", "name", "served"),
    [("/runs/mine/model", "", "mine"), ("/models/mine", "", "mine"), ("/models/a", "b", "b")],
)
def test_a_model_is_called_as_its_run_or_its_folder(model, name, served):
    assert Serve(model=model, name=name).served_name == served
