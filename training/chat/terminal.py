"""A conversation at the terminal: answers as they are said, and commands after a slash."""

import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from schemas.command_line import print_error
from schemas.errors import ConfigError
from schemas.terminal import Console, shown
from training.chat.commands import Chat
from training.chat.conversation import Conversation
from training.chat.history import kept_history
from training.model.answering.mix import bars
from training.model.answering.prompt import Alignment, modes_of
from training.model.answering.sampling import Sampling
from training.parts import Assembled, load_to_answer

HELP = """/image FILE   show a picture with the next question
/clear        forget pictures and turns
/levels       how the last answer mixed the alignment levels
/level N      answer with level N's own vector; without N, mixed again
/mode NAME    answer in another alignment mode; without NAME, show them
/help         this list
/quit         end, as Ctrl-D does; Ctrl-C stops an answer"""
STATUS_REFUSED = 2


def chat(command: Chat) -> int:
    """Prints the model's answer, or its answers to what is typed or piped in; returns 0 or 2.

    Raises:
        ConfigError: if there is no such picture or model, or a setting is not allowed.
    """
    sampling = Sampling(
        max_new_tokens=command.max_new_tokens,
        temperature=command.temperature,
        top_p=command.top_p,
        seed=command.seed,
        stop=command.stop,
    )
    pictures = [load_picture(image) for image in command.image]
    parts = load_to_answer(command.model)
    alignment = Alignment(level=command.level, mode=command.mode)
    conversation = Conversation(parts, pictures, command.form, sampling, alignment)
    session = Session(conversation, parts)
    if command.form == "caption" or command.prompt is not None:
        session.answer(command.prompt or "")
        return 0
    return session.hold()


def load_picture(path: str) -> Image.Image:
    """Returns the picture in a file.

    Raises:
        ConfigError: if it is not there or no picture.
    """
    if not Path(path).is_file():
        problem = f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}"
        raise ConfigError(f"{problem}: give a picture with --image")
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no picture that can be read: {error}") from error
    except Image.DecompressionBombError as error:
        raise ConfigError(f"{path} has too many pixels: {error}") from error
    return picture


class Session:
    """A conversation with whoever types, or with the lines of a file."""

    def __init__(self, conversation: Conversation, parts: Assembled) -> None:
        self._conversation, self._config = conversation, parts.model.config
        self._console = Console(highlight=False)
        self._is_terminal = sys.stdin.isatty()

    def hold(self) -> int:
        """Returns 0 at the end of the conversation, 2 if piped lines were refused."""
        refused = 0
        with kept_history() if self._is_terminal else nullcontext():
            if self._is_terminal:
                self._console.print("Ask, or /help; Ctrl-D ends the conversation.", style="dim")
            for line in self._lines():
                if line.strip() in ("/quit", "/exit"):
                    break
                try:
                    self._take(line)
                except ConfigError as error:
                    print_error(str(error))
                    refused += 1
        return STATUS_REFUSED if refused and not self._is_terminal else 0

    def answer(self, question: str, name: str = "") -> None:
        """Prints the answer to a question as it is said; Ctrl-C stops it.

        Raises:
            ConfigError: if the model cannot take it.
        """
        pieces = self._conversation.answer(question)
        with closing(pieces):
            try:
                for piece in pieces:
                    self._console.out(shown(name + piece), end="")
                    name = ""
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                self._console.print(" (stopped)", style="dim", end="")
        self._console.print()

    def _lines(self) -> Iterator[str]:
        """Yields what is typed, or piped in, a line each."""
        with suppress(EOFError):
            while True:
                try:
                    yield input("you: " if self._is_terminal else "")
                except KeyboardInterrupt:
                    if not self._is_terminal:
                        raise
                    self._console.print("\n/quit or Ctrl-D ends the conversation.", style="dim")

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self.answer(line.strip(), "model: ")
            return
        name, _, value = line.strip().partition(" ")
        commands = {
            "/image": self._show,
            "/clear": self._clear,
            "/levels": self._levels,
            "/level": self._level,
            "/mode": self._mode,
            "/help": self._help,
        }
        if name not in commands:
            raise ConfigError(
                f"there is no {name}: /help lists the commands; to ask what begins with a slash, "
                "set a space before it"
            )
        commands[name](value.strip())

    def _show(self, path: str) -> None:
        if not path:
            raise ConfigError("/image FILE: name a picture")
        self._conversation.show(load_picture(str(Path(path).expanduser())))
        self._note("shown with the next question")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._note("forgotten: pictures and turns")

    def _levels(self, _: str) -> None:
        last = self._conversation.last
        if last is None:
            raise ConfigError("/levels tells of the last answer, and there is none yet")
        if not last.mixed_levels:
            raise ConfigError("this answer has no alignment levels: they come with pictures")
        self._console.out(bars(last.mixed_levels))

    def _level(self, value: str) -> None:
        if value and not value.isdecimal():
            raise ConfigError(f"/level N: a number of 1 to {self._config.num_levels}, got {value}")
        level = int(value) if value else None
        self._conversation.alignment = replace(self._conversation.alignment, level=level)
        self._note(f"level {level}" if level else "levels mixed")

    def _mode(self, value: str) -> None:
        if value:
            self._conversation.alignment = replace(self._conversation.alignment, mode=value)
        now = self._conversation.alignment.mode or self._config.alignment_mode
        self._note(f"mode {now} (of {', '.join(modes_of(self._config))})")

    def _help(self, _: str) -> None:
        self._console.out(HELP)

    def _note(self, text: str) -> None:
        if self._is_terminal:
            self._console.print(text, style="dim")
