"""A judge behind an OpenAI-compatible endpoint: pinned, cached, counted, its price told first."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.progress import RunProgress
from schemas.terminal import Console
from training.evaluation.commands import JudgeConfig
from training.evaluation.files import Folder, numbered_lines
from training.evaluation.judging import JudgedBenchmark, JudgeRequest, add_judgement
from training.evaluation.questions import Answer

CHARACTERS_A_TOKEN = 4
"""Of English text, as tokenizers of GPT models cut it; for the price alone."""
EXPECTED_REPLY_TOKENS = 250
"""Of a reply with an explanation; shorter limits count whole."""
NO_KEY = "none"
"""Sent where the environment has no key: local endpoints want none."""


@dataclass(slots=True)
class Judge:
    """An endpoint and the replies it has given, each kept as soon as it is there."""

    config: JudgeConfig
    model: str
    path: Path
    """Of the kept replies."""
    replies: dict[str, str] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    """What the endpoint says answered, counted: it may be another than was asked for."""
    calls: int = 0
    _client: Any = None

    def read(self) -> None:
        """Reads the kept replies; a line that was cut off is asked again."""
        if not self.path.is_file():
            return
        for _, line in numbered_lines(self.path):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            self.replies[entry["key"]] = entry["reply"]
            self.models[entry["answered_by"]] += 1

    def key(self, question: str, request: JudgeRequest, run: int) -> str:
        """Returns what a reply is kept under: question, run, and all that is sent."""
        sent = [list(request.messages), request.temperature, request.max_tokens]
        value = [self.model, question, sent, run]
        return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()

    def ask(self, question: str, request: JudgeRequest, run: int) -> str:
        """Returns the reply to a request, from what is kept or from the endpoint.

        Raises:
            ConfigError: if the endpoint refuses, or does not answer after all retries. What was
                judged so far is kept.
        """
        key = self.key(question, request, run)
        if key not in self.replies:
            reply, answered_by = self._call(request)
            self._keep(key, request, reply, answered_by, run)
        return self.replies[key]

    def _keep(
        self, key: str, request: JudgeRequest, reply: str, answered_by: str, run: int
    ) -> None:
        entry = {
            "key": key,
            "model": self.model,
            "answered_by": answered_by,
            "run": run,
            "temperature": request.temperature,
            "messages": list(request.messages),
            "reply": reply,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.replies[key] = reply
        self.models[answered_by] += 1

    def _call(self, request: JudgeRequest) -> tuple[str, str]:
        from openai import OpenAI, OpenAIError

        if self._client is None:
            self._client = OpenAI(
                base_url=self.config.url,
                api_key=os.environ.get("OPENAI_API_KEY") or NO_KEY,
                max_retries=self.config.retries,
                timeout=self.config.timeout_seconds,
            )
        self.calls += 1
        try:
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=list(request.messages),
                temperature=request.temperature,
                max_tokens=request.max_tokens,
            )
            reply = completion.choices[0].message.content or ""
        except (OpenAIError, IndexError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the judge at {self.config.url} did not answer ({type(error).__name__}: {error}). "
                f"{len(self.replies)} replies are kept in {self.path}: mend it, and run the same "
                "command again"
            ) from error
        return reply, str(completion.model or self.model)


def _end_last_line(path: Path) -> None:
    """Ends a line that a kill cut off, so that the next is one of its own."""
    if path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def judge_for(benchmark: JudgedBenchmark, config: JudgeConfig, folder: Path) -> Judge:
    """Returns the judge of a benchmark, with the replies kept in a folder."""
    judge = Judge(config, config.model or benchmark.judge_model, folder / "replies.jsonl")
    judge.read()
    return judge


def check_judge(benchmark: JudgedBenchmark, folder: Folder, config: JudgeConfig) -> None:
    """Raises ConfigError if a judge is wanted and its rules are not there."""
    if config.url:
        benchmark.rules(folder)


def judge_answers(
    benchmark: JudgedBenchmark,
    answers: Sequence[Answer],
    folder: Folder,
    judge: Judge,
    config: JudgeConfig,
    *,
    is_agreed: bool,
) -> None:
    """Gives every answer what the judge makes of it, once for each run.

    Raises:
        ConfigError: if the price is not agreed to, or the judge does not answer.
    """
    rules = benchmark.rules(folder)
    waiting = [
        request
        for run in range(config.runs)
        for answer, request in ((one, benchmark.first_request(one, rules)) for one in answers)
        if judge.key(str(answer.question.question_id), request, run) not in judge.replies
    ]
    if waiting:
        agree_on_price(benchmark, judge, waiting, is_agreed=is_agreed)
    total = config.runs * len(answers)
    title = f"judging {benchmark.title}"
    with RunProgress(title, total, 0, is_active=True, unit="answer") as progress:
        for run in range(config.runs):
            for answer in answers:

                def ask(
                    request: JudgeRequest,
                    question: str = str(answer.question.question_id),
                    run: int = run,
                ) -> str:
                    return judge.ask(question, request, run)

                found = benchmark.judge(answer, rules, ask, config.parser)
                add_judgement(answer, found)
                progress.advance("")


def price(requests: Sequence[JudgeRequest], config: JudgeConfig) -> tuple[int, int, float]:
    """Returns about how many tokens go there and come back, and what they cost in dollars."""
    characters = sum(len(m["content"]) for request in requests for m in request.messages)
    sent = characters // CHARACTERS_A_TOKEN
    got = sum(min(request.max_tokens, EXPECTED_REPLY_TOKENS) for request in requests)
    dollars = (sent * config.input_price + got * config.output_price) / 1e6
    return sent, got, dollars


def agree_on_price(
    benchmark: JudgedBenchmark, judge: Judge, requests: Sequence[JudgeRequest], *, is_agreed: bool
) -> None:
    """Shows what judging costs, and asks at a terminal whether to go on.

    Raises:
        ConfigError: if the answer is no, or there is nobody to ask.
    """
    sent, got, dollars = price(requests, judge.config)
    console = Console(stderr=True, highlight=False)
    console.print(
        f"Judging {benchmark.title} by {judge.model} at {judge.config.url}: {len(requests):,} "
        f"calls, about {sent:,} tokens sent and {got:,} received, about ${dollars:,.2f}",
        markup=False,
        soft_wrap=True,
    )
    if is_agreed:
        return
    if not console.is_terminal or console.input("Go on? [y/N] ").strip().lower() != "y":
        raise ConfigError("judging was not agreed to: --yes agrees beforehand")
