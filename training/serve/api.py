"""The routes for programs: OpenAI's chat completions and models, health and counters."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from schemas.errors import ConfigError
from training.model.answering.decoder import Answer
from training.model.answering.prompt import Alignment, modes_of
from training.model.answering.sampling import Sampling
from training.serve.engine import NotAnswered, Ticket
from training.serve.errors import ApiError, error_body
from training.serve.guards import Gate, KeyGuard
from training.serve.replies import DONE, Reply, event
from training.serve.requests import ChatRequest
from training.serve.service import Service

EXTRA_SECONDS = 30.0
"""Beyond the time of an answer, for a client that reads slowly."""


def build_app(service: Service, key: str = "") -> FastAPI:
    """Returns the routes for programs.

    Args:
        key: that all must send but for /health; empty for none.
    """
    app = FastAPI(title="aligngpt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, command=service.command)
    app.include_router(_routes(service, KeyGuard(key)))
    _word_errors(app, service)
    return app


def _routes(service: Service, guard: KeyGuard) -> APIRouter:
    routes, started = APIRouter(), int(time.time())
    guarded = [Depends(guard)]

    @routes.get("/health")
    def health() -> Response:
        load = service.engine.load
        state = {"status": "ok", "waiting": load.waiting, "running": load.running}
        if service.engine.is_alive:
            return JSONResponse(state)
        return JSONResponse({**state, "status": "ended"}, 503)

    @routes.get("/metrics", dependencies=guarded)
    def metrics() -> Response:
        return Response(service.meters.text(), media_type=CONTENT_TYPE_LATEST)

    def model() -> dict[str, Any]:
        config = service.config
        return {
            "id": service.command.served_name,
            "object": "model",
            "created": started,
            "owned_by": "aligngpt",
            "alignment_mode": config.alignment_mode,
            "alignment_modes": list(modes_of(config)),
            "alignment_levels": config.num_levels if config.has_align_token else 0,
        }

    @routes.get("/v1/models", dependencies=guarded)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @routes.get("/v1/models/{name:path}", dependencies=guarded)
    def one_model(name: str) -> dict[str, Any]:
        if name != service.command.served_name:
            raise ApiError(404, f"there is no model {name[:100]!r} here", code="model_not_found")
        return model()

    @routes.post("/v1/chat/completions", dependencies=guarded)
    async def complete(asked: Annotated[ChatRequest, Depends(_read)], request: Request) -> Response:
        return await _complete(service, asked, request)

    return routes


async def _read(request: Request) -> ChatRequest:
    """Returns what a request says.

    Raises:
        ApiError: if it is no JSON, or says what is not known here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the request as application/json")
    body = await request.body()
    try:
        return await asyncio.to_thread(ChatRequest.model_validate_json, body)
    except ValidationError as error:
        place, what = _first_fault(error)
        said = f"{place}: {what}" if place else what
        raise ApiError(400, said, param=place or None) from error


def _first_fault(error: ValidationError) -> tuple[str, str]:
    """Returns where a request is wrong, and what is: of what may be this or that, the likelier.

    A content that is a list is no text either: what is wrong within the list says more.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    field = found[0]["loc"][:1]
    fault = max((one for one in found if one["loc"][:1] == field), key=lambda one: len(one["loc"]))
    # Beside names and numbers, pydantic has the types that it tried in there: `list[...]`, `str`.
    place = [str(part) for part in fault["loc"] if str(part).replace("_", "").isalnum()]
    what = "this field is not known here" if fault["type"] == "extra_forbidden" else fault["msg"]
    return ".".join(part for part in place if part != "str")[:200], what


async def _complete(service: Service, asked: ChatRequest, request: Request) -> Response:
    """Returns the answer to a request, whole or as a stream."""
    began = time.monotonic()
    asked.check(service.limits, service.command.served_name)
    try:
        sampling = Sampling(
            max_new_tokens=asked.new_tokens(service.limits),
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            stop=asked.stops,
        )
    except ConfigError as error:
        raise ApiError(400, str(error)) from error
    pictures = await service.pictures(asked.image_urls())
    alignment = Alignment(level=asked.alignment_level, mode=asked.alignment_mode)
    ticket = await service.ask(asked.turns(pictures), sampling, alignment, asked.n)
    service.meters.images.inc(len(pictures))
    run = _Run(service, ticket, began)
    reply = Reply(service.command.served_name, ticket.question)
    if not asked.stream:
        return JSONResponse(reply.whole(await run.to_the_end(request)))
    has_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return _Stream(run.events(reply, has_usage), run)


class _Run:
    """One answered request, with what is counted of it."""

    def __init__(self, service: Service, ticket: Ticket, began: float) -> None:
        self._meters, self._ticket, self._began = service.meters, ticket, began
        self._answers: dict[int, Answer] = {}
        self._is_over = False
        self.seconds = service.limits.answer_seconds

    async def to_the_end(self, request: Request) -> list[Answer]:
        """Returns all answers; a client that leaves ends them.

        Raises:
            ApiError: if there are none.
        """
        reading = asyncio.ensure_future(self._read())
        leaving = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ApiError(499, "the client is gone")
            return await reading
        except NotAnswered as gone:
            raise ApiError(503, str(gone)) from gone
        finally:
            self.close()
            for task in (reading, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, NotAnswered):
                    await task

    async def _read(self) -> list[Answer]:
        async for piece in self._ticket:
            self._note(piece.number, piece.answer)
        self._is_over = True
        return [self._answers[number] for number in sorted(self._answers)]

    async def events(self, reply: Reply, has_usage: bool) -> AsyncIterator[bytes]:
        """Yields the events of a stream, an error's among them if it breaks off."""
        try:
            async for piece in self._ticket:
                if piece.number not in self._answers:
                    self._note(piece.number, piece.answer)
                    yield reply.first(piece.number, piece.answer)
                if piece.text:
                    yield reply.piece(piece.number, piece.text)
                if piece.is_last:
                    yield reply.last(piece.number, piece.answer)
        except NotAnswered as gone:
            yield event(error_body(503, str(gone)))
            return
        self._is_over = True
        if has_usage:
            yield reply.usage_event(list(self._answers.values()))
        yield DONE

    def _note(self, number: int, answer: Answer) -> None:
        if not self._answers:
            self._meters.first_seconds.observe(time.monotonic() - self._began)
        self._answers[number] = answer

    def close(self) -> None:
        """Ends what still goes on, and counts."""
        self._ticket.cancel()
        said = sum(answer.num_tokens for answer in self._answers.values())
        self._meters.tokens.labels("prompt").inc(self._ticket.question.prompt.num_tokens)
        self._meters.tokens.labels("completion").inc(said)
        self._meters.seconds.observe(time.monotonic() - self._began)
        self._meters.requests.labels("200" if self._is_over else "broken off").inc()
        if not self._is_over:
            self._meters.gone.inc()


async def _gone(request: Request) -> None:
    """Returns when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """A stream that ends its answers when its reader is gone, and does not wait for one forever."""

    def __init__(self, events: AsyncIterator[bytes], run: _Run) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._events, self._run = events, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            async with aclosing(self._events), asyncio.timeout(self._run.seconds + EXTRA_SECONDS):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)
        finally:
            self._run.close()


def _word_errors(app: FastAPI, service: Service) -> None:
    """Makes errors take OpenAI's form."""

    @app.exception_handler(ApiError)
    def refused(_: Request, error: ApiError) -> Response:
        service.meters.requests.labels(str(error.status)).inc()
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    def failed(_: Request, error: HTTPException) -> Response:
        service.meters.requests.labels(str(error.status_code)).inc()
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code)
