"""What was typed, over sessions."""

from pathlib import Path

import pytest

from training.chat.history import history_file, kept_history


def test_what_was_typed_comes_back_in_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with kept_history():
        readline.clear_history()
        readline.add_history("hello")
    assert history_file().read_text() == "hello\n"
    assert history_file().stat().st_mode & 0o777 == 0o600
    readline.clear_history()
    with kept_history():
        assert readline.get_history_item(1) == "hello"
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    with kept_history():
        pass
