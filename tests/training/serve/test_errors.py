"""Errors in the form that OpenAI's clients know."""

import pytest

from training.serve.errors import ApiError, error_body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_a_status_has_its_kind(status, kind):
    assert error_body(status, "no") == {
        "error": {"message": "no", "type": kind, "param": None, "code": None}
    }


def test_an_error_is_answered_as_it_was_raised():
    error = ApiError(404, "no such model", code="model_not_found", param="model")
    assert str(error) == "no such model"
    assert error.body["error"]["code"] == "model_not_found"
    assert error.body["error"]["param"] == "model"
