"""Control characters are shown, and a reader that is gone ends nothing."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import schemas.terminal
from schemas.command_line import print_error
from schemas.terminal import CONTROL, Console, shown, shown_bytes

HOSTILE = {
    "clear": "a\x1b[2Jb",
    "title": "a\x1b]0;title\x07b",
    "c1": "a\x9b2Jb",
    "bell": "a\x07b",
    "back": "secret\x08\x08b",
    "return": "good\rbad",
    "override": "a\u202egnp.exe",
    "isolate": "a\u2066b\u2069",
    "separator": "a\u2028b",
    "half": "a\ud800b",
    "null": "a\x00b",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_would_obey_is_written_out(text: str) -> None:
    assert not CONTROL.search(shown(text))
    assert shown(shown(text)) == shown(text)
    assert shown(text).startswith(text[0])


@pytest.mark.parametrize("text", ["", "plain", "zwei\nZeilen\tund Tab", "犬 👩‍👧 ö é"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert shown(text) == text
    assert shown_bytes(text.encode()) == text.encode()


def printed(*objects: object, **settings: object) -> str:
    file = io.StringIO()
    Console(file=file, width=40, force_terminal=True, color_system=None).print(*objects, **settings)
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_console_sends_nothing_of_it_in_any_form(text: str) -> None:
    table = Table("caption", title=text)
    table.add_row(text)
    table.add_row(Text(text, no_wrap=True, overflow="ellipsis"))
    for said in (printed(text), printed(Text(text)), printed(table), printed(text, markup=False)):
        assert not CONTROL.search(said)


def test_a_path_that_looks_like_markup_is_printed() -> None:
    assert "data[/x]" in printed("Done: data[/x]")


def test_errors_show_the_names_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("cannot read a\x1b[2J.csv")
    assert "a\\x1b[2J.csv" in capsys.readouterr().err


def test_logs_show_them_too() -> None:
    assert shown_bytes(b"\x1b[2J \xc2\x9b \x07\n\t") == b"\\x1b[2J \\x9b \\x07\n\t"


PROGRAM = """
import sys
from schemas.terminal import Console, prepare_output
prepare_output()
for number in range(20_000):
    Console().print(f"line {number}")
    print("plain")
print("x\\udcff")
sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["before", "meanwhile"])
def test_a_closed_output_neither_raises_nor_ends_the_work(closed: str) -> None:
    redirect = ">&-" if closed == "before" else "| head -1"
    root = Path(schemas.terminal.__file__).parents[1]
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$PROGRAM" {redirect}'],
        env={**os.environ, "PYTHONPATH": str(root), "PROGRAM": PROGRAM},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode == 7


def test_no_other_console_is_used() -> None:
    root = Path(schemas.terminal.__file__).parents[1]
    sources = [
        path for room in ("schemas", "pipeline", "training") for path in (root / room).rglob("*.py")
    ]
    users = [path for path in sources if "rich.console import Console" in path.read_text()]
    assert [path.name for path in users] == ["terminal.py"]
