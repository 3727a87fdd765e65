"""Answers in the form of OpenAI's chat completions, whole and in pieces."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from training.model.answering.decoder import Answer, Question


class Reply:
    """How the answers to one request are worded."""

    def __init__(self, model: str, question: Question) -> None:
        self._model, self._question = model, question
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns all answers at once."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
                "alignment": self.alignment(answer),
            }
            for number, answer in enumerate(answers)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(answers)}

    def first(self, number: int, answer: Answer) -> bytes:
        """Returns the event that begins an answer; it says how the levels are mixed."""
        return self._event(
            number, {"role": "assistant", "content": ""}, None, alignment=self.alignment(answer)
        )

    def piece(self, number: int, text: str) -> bytes:
        """Returns the event of some words."""
        return self._event(number, {"content": text}, None)

    def last(self, number: int, answer: Answer) -> bytes:
        """Returns the event that ends an answer."""
        return self._event(number, {}, answer.finish_reason)

    def usage_event(self, answers: Sequence[Answer]) -> bytes:
        """Returns the event that counts tokens."""
        return event(
            {
                **self._head("chat.completion.chunk"),
                "choices": [],
                "usage": self.usage(answers),
            }
        )

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        """Returns the tokens of prompt and answers."""
        prompt, said = self._question.prompt.num_tokens, sum(a.num_tokens for a in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
        }

    def alignment(self, answer: Answer) -> dict[str, Any] | None:
        """Returns how an answer mixed the alignment levels; None without a picture."""
        if not answer.mixed_levels:
            return None
        asked = self._question.alignment
        return {
            "mode": asked.mode,
            "level": asked.level,
            "gate_weights": answer.gate_weights,
            "mixed_levels": answer.mixed_levels,
        }

    def _event(
        self, number: int, delta: dict[str, Any], finish_reason: str | None, **more: Any
    ) -> bytes:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
            **more,
        }
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


def event(body: dict[str, Any]) -> bytes:
    """Returns a server-sent event. Source: the HTML standard, section 9.2."""
    return b"data: " + json.dumps(body, ensure_ascii=True).encode() + b"\n\n"
