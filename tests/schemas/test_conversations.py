import pytest

from schemas.conversations import conversation_fault, opening_answers

ASK, ANSWER, SYSTEM = ("user", "what?"), ("assistant", "this"), ("system", "be brief")


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([ASK, ANSWER], None),
        ([SYSTEM, ASK, ANSWER], None),
        ([ANSWER, ASK, ANSWER], None),
        ([ASK, ("assistant", " "), ASK, ANSWER], None),
        ([ASK, ANSWER, SYSTEM], "turn 2 of it is the system's"),
        ([ANSWER, ASK], "no turn of the assistant"),
        ([ASK], "no turn of the assistant"),
        ([], "no turn of the assistant"),
        ([ASK, ("assistant", " \n")], "says nothing"),
    ],
)
def test_a_conversation_is_learnt_from_if_someone_asks_and_is_answered(turns, fault):
    found = conversation_fault(turns)
    assert found is None if fault is None else fault in (found or "")


def test_one_answer_that_opens_a_conversation_is_left_out():
    assert opening_answers(["assistant", "user"]) == 1
    assert opening_answers(["user", "assistant"]) == opening_answers([]) == 0
