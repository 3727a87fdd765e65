"""Before anything is served."""

import pytest

from schemas.errors import ConfigError
from training.serve.commands import Serve
from training.serve.run import api_key, listen


def test_others_are_let_in_with_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNGPT_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="ALIGNGPT_API_KEY"):
            api_key(Serve(model="m", host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert api_key(Serve(model="m", host=host)) == ""
    assert api_key(Serve(model="m", host="0.0.0.0", api_key="k")) == "k"
    monkeypatch.setenv("ALIGNGPT_API_KEY", "from the environment")
    assert api_key(Serve(model="m", host="0.0.0.0")) == "from the environment"


def test_an_address_that_is_taken_is_said() -> None:
    with listen(Serve(model="m", port=0)) as taken, pytest.raises(ConfigError, match="--port"):
        listen(Serve(model="m", port=taken.getsockname()[1]))
