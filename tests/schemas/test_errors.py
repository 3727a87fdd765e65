import pickle
import re
from types import SimpleNamespace

import pytest

from schemas.errors import ConfigError, RejectReason, SampleRejected, require_at_least
from schemas.stages import Stage


@pytest.mark.parametrize("reason", RejectReason)
def test_every_reason_has_a_stage_and_a_name_of_its_own(reason):
    assert isinstance(reason.stage, Stage)
    assert isinstance(reason.is_retryable, bool)
    assert re.fullmatch("[a-z_]+", reason.value)
    assert reason.name.lower() == reason.value


def test_no_two_reasons_share_a_name():
    assert len({reason.value for reason in RejectReason}) == len(RejectReason)


def test_only_fetching_can_succeed_later():
    assert {reason.stage for reason in RejectReason if reason.is_retryable} == {Stage.FETCH}


def test_reasons_stand_in_the_order_of_the_stages():
    stages = list(Stage)
    order = [stages.index(reason.stage) for reason in RejectReason]
    assert order == sorted(order)


def test_a_rejection_survives_the_way_between_processes():
    rejected = SampleRejected(RejectReason.HTTP_STATUS, "404 Not Found", 404)
    copy = pickle.loads(pickle.dumps(rejected))
    assert (copy.reason, copy.detail, copy.http_status) == (
        RejectReason.HTTP_STATUS,
        "404 Not Found",
        404,
    )


def test_the_first_setting_that_is_less_is_named_with_its_value():
    settings = SimpleNamespace(fine=1, less=0, lesser=-3)
    require_at_least(1, settings, ("fine",), "score.")
    with pytest.raises(ConfigError, match=r"^score\.less must be at least 1, got 0$"):
        require_at_least(1, settings, ("fine", "less", "lesser"), "score.")
    require_at_least(0, settings, ("less",))
    with pytest.raises(ConfigError, match=r"^lesser must be at least 0, got -3$"):
        require_at_least(0, settings, ("lesser",))
