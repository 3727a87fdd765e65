import pickle
import re

import pytest

from schemas.errors import RejectReason, SampleRejected
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
