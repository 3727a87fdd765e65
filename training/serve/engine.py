"""The one thread that answers: who asks waits in a queue, and joins the batch with room."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import torch

from training.model.answering.decoder import Answer, Decoder, Question

NO_ROOM = (
    "the answer does not fit in this machine's memory beside the others: ask shorter, or start the "
    "server with a smaller --batch-size"
)


class QueueFull(Exception):
    """As many wait as may."""


class NotAnswered(Exception):
    """There will be no answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What was added to one of the answers to a question."""

    number: int
    """Which of its answers."""
    text: str
    answer: Answer
    """As it stood then, or later."""
    is_last: bool


@dataclass(eq=False)
class Ticket:
    """One question on its way."""

    question: Question
    deadline: float
    """On the monotonic clock."""
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Piece | NotAnswered]" = field(default_factory=asyncio.Queue)
    answers: list[Answer] = field(default_factory=list)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Ends its answers: who asked is gone."""
        self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yields what is said, until all answers ended.

        Raises:
            NotAnswered: if there is no answer, or no end of it.
        """
        ended = 0
        while ended < self.question.answers:
            piece = await self.pieces.get()
            if isinstance(piece, NotAnswered):
                raise piece
            ended += piece.is_last
            yield piece

    def put(self, *pieces: Piece | NotAnswered) -> None:
        """Hands pieces to who asked, from the thread that answers."""
        for piece in pieces:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is to do."""

    waiting: int
    """Questions."""
    running: int
    """Answers."""


class Engine:
    """A decoder with its thread and its queue."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        batch_size: int,
        waiting: int,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._decoder, self._batch_size, self._max_waiting = decoder, batch_size, waiting
        self._on_end = on_end
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        """Starts to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        """How much is to do now."""
        return Load(len(self._waiting), len(self._decoder.rows))

    def ask(self, question: Question, seconds: float) -> Ticket:
        """Returns the ticket of a question that waits now; called in an event loop.

        Args:
            seconds: in which it is to be answered; what was said until then is the answer.

        Raises:
            ConfigError: if the model cannot take it.
            QueueFull: if as many wait as may.
            NotAnswered: if nothing is answered any more.
        """
        self._decoder.check(question)
        ticket = Ticket(question, time.monotonic() + seconds, asyncio.get_running_loop())
        with self._changed:
            if self._is_closing or not self.is_alive:
                raise NotAnswered("the server is ending")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(f"{self._max_waiting} requests wait already: try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Ends all answers and the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._leave()
                self._admit()
                self._step()
        finally:
            with self._changed:
                self._is_closing = True
                left = [*self._waiting, *self._running]
                self._waiting.clear()
            for ticket in left:
                ticket.put(NotAnswered("the server ended before the answer did"))
            self._on_end()

    def _wait_for_work(self) -> bool:
        """Returns whether there is work, once there is; False at the end."""
        with self._changed:
            while not (self._is_closing or self._waiting or self._running):
                self._changed.wait()
            return not self._is_closing

    def _leave(self) -> None:
        """Ends answers whose asker is gone or whose time is over."""
        now = time.monotonic()
        for ticket in [*self._running]:
            if ticket.is_cancelled or now > ticket.deadline:
                going = [a for a in ticket.answers if a.finish_reason is None]
                self._decoder.drop(going)
                self._running.remove(ticket)
                for answer in going:
                    answer.finish_reason = "length"
                    ticket.put(Piece(ticket.answers.index(answer), "", answer, is_last=True))
        with self._changed:
            late = [t for t in self._waiting if t.is_cancelled or now > t.deadline]
            for ticket in late:
                self._waiting.remove(ticket)
        for ticket in late:
            ticket.put(NotAnswered("the time for this request was over before its turn came"))

    def _admit(self) -> None:
        """Begins as many of the questions that wait as there is room for, the first first."""
        room = self._batch_size - len(self._decoder.rows)
        chosen: list[Ticket] = []
        with self._changed:
            while self._waiting and self._waiting[0].question.answers <= room:
                chosen.append(self._waiting.popleft())
                room -= chosen[-1].question.answers
        if not chosen:
            return
        try:
            begun = self._decoder.begin([ticket.question for ticket in chosen])
        except torch.OutOfMemoryError:
            self._give_up(chosen)
            return
        for ticket, answers in zip(chosen, begun, strict=True):
            ticket.answers = [answer for answer, _ in answers]
            self._running.append(ticket)
            self._hand_out(ticket, [(number, text) for number, (_, text) in enumerate(answers)])

    def _step(self) -> None:
        """Adds a word to each answer."""
        try:
            said = self._decoder.step()
        except torch.OutOfMemoryError:
            self._decoder.drop(list(self._decoder.rows))
            self._give_up(self._running)
            return
        texts = {id(answer): text for answer, text in said}
        for ticket in [*self._running]:
            found = [
                (number, texts[id(answer)])
                for number, answer in enumerate(ticket.answers)
                if id(answer) in texts
            ]
            self._hand_out(ticket, found)

    def _hand_out(self, ticket: Ticket, said: Sequence[tuple[int, str]]) -> None:
        for number, text in said:
            answer = ticket.answers[number]
            ticket.put(Piece(number, text, answer, answer.finish_reason is not None))
        if all(answer.finish_reason is not None for answer in ticket.answers):
            self._running.remove(ticket)

    def _give_up(self, tickets: Sequence[Ticket]) -> None:
        for ticket in [*tickets]:
            ticket.put(NotAnswered(NO_ROOM))
            if ticket in self._running:
                self._running.remove(ticket)
