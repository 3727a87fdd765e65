"""The page: what it answers to which address, on this machine alone."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pipeline.browse.filters import STATES, Filters
from pipeline.browse.pictures import Pictures
from pipeline.browse.rows import GROUPS, PAGE_ROWS, PLACE_FILE, DatasetRows, Row
from schemas.errors import ConfigError
from schemas.stages import Stage
from schemas.terminal import shown

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]
"""Names that the page answers to: by no other name can a page of the web reach it."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

DUPLICATES = ("near_duplicate", "exact_duplicate")


class Page:
    """Answers requests from the rows and the pictures of one dataset."""

    def __init__(self, rows: DatasetRows) -> None:
        self._rows, self._pictures = rows, Pictures(rows.layout)
        self._name = Path(rows.layout.root).name
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("pipeline.browse", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"shown": _shown, "thousands": "{:,}".format}
        self._templates.globals["address"] = _picture_address
        self._levels, self._reasons = rows.levels(), rows.reasons()

    def app(self) -> Starlette:
        """Returns the application that a server runs."""
        routes = [
            Route("/", self.samples),
            Route("/sample/{key}", self.sample),
            Route("/duplicates", self.duplicates),
            Route("/edges", self.edges),
            Route("/picture/{folder}/{shard:int}/{row:int}", self.picture),
            Route("/style.css", self.style),
            Route("/favicon.ico", _nothing),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
        return Starlette(routes=routes, middleware=[hosts])

    def samples(self, request: Request) -> Response:
        """Returns the list of rows that the filters ask for."""
        query = dict(request.query_params)
        number, order = _page_number(query), query.get("order", "")
        filters, error, rows, total = Filters(), "", list[Row](), 0
        try:
            filters = Filters.from_query(query)
            # By itself, so that what is wrong is said of what was typed.
            self._rows.condition(filters.where)
            condition = filters.of_rows()
            total = self._rows.count(condition)
            rows = self._rows.page(condition, order, number)
        except (ConfigError, ValueError) as refusal:
            error = str(refusal)
        return self._render(
            "samples.jinja",
            status=400 if error else 200,
            filters=filters,
            order=order,
            orders=list(self._rows.orders),
            states=STATES,
            error=error,
            rows=rows,
            total=total,
            command=self._command(filters) if not error else "",
            pages=_pages(query, number, total, PAGE_ROWS),
        )

    def _command(self, filters: Filters) -> str:
        """Returns the command that makes a dataset of the kept rows shown."""
        condition = filters.of_samples() or "true"
        return (
            shlex.join(["aligngpt-curate", "select", self._rows.layout.root, "--where", condition])
            + " --out NEW"
        )

    def sample(self, request: Request) -> Response:
        """Returns all that is known of a sample."""
        found = self._rows.sample(request.path_params["key"])
        kept_key = next((row["kept_key"] for row in found if row["kept_key"]), None)
        beside = self._rows.sample(kept_key)[:1] if kept_key else []
        status = 200 if found else 404
        return self._render("sample.jinja", status=status, found=found, beside=beside)

    def duplicates(self, request: Request) -> Response:
        """Returns groups of duplicates, each beside what stayed."""
        query = dict(request.query_params)
        reason = query.get("kind") if query.get("kind") in DUPLICATES else DUPLICATES[0]
        number = _page_number(query)
        total, groups = self._rows.duplicates(number, str(reason))
        pages = _pages(query, number, total, GROUPS)
        return self._render(
            "duplicates.jinja",
            kinds=DUPLICATES,
            kind=reason,
            groups=groups,
            total=total,
            pages=pages,
        )

    def edges(self, request: Request) -> Response:
        """Returns the pairs on both sides of the edge between two levels."""
        numbers = [row["level"] for row in self._levels][:-1]
        asked = request.query_params.get("level", "")
        level = int(asked) if asked.isdecimal() and int(asked) in numbers else None
        if level is None and numbers:
            level = numbers[len(numbers) // 2]
        below, above = self._rows.edge(level) if level is not None else ([], [])
        return self._render("edges.jinja", numbers=numbers, level=level, sides=[below, above])

    def picture(self, request: Request) -> Response:
        """Returns the picture of a row of a file."""
        folder, shard = request.path_params["folder"], request.path_params["shard"]
        row = self._rows.row(folder, shard, request.path_params["row"])
        found = self._pictures.read(row) if row is not None else None
        if found is None:
            return Response(status_code=404, headers=HEADERS)
        kind, content = found
        return Response(content, media_type=kind, headers=HEADERS)

    def style(self, request: Request) -> Response:
        """Returns the style sheet."""
        text = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
        return Response(text, media_type="text/css", headers=HEADERS)

    def _render(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(
            name=self._name,
            levels=self._levels,
            reasons=self._reasons,
            ranked_by=self._rows.ranked_by,
            **values,
        )
        return HTMLResponse(text, status_code=status, headers=HEADERS)


def _nothing(request: Request) -> Response:
    return Response(status_code=204, headers=HEADERS)


def _picture_address(row: Row) -> str:
    """Returns where the page has a row's picture, empty if it has none."""
    path = Path(row[PLACE_FILE])
    folder = path.parent.name
    if folder in (Stage.READ.value, Stage.FETCH.value):
        return ""
    return f"/picture/{folder}/{int(path.stem)}/{row['file_row_number']}"


def _shown(value: Any) -> str:
    """Returns a value as people read it; control characters are shown, never sent."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return shown(str(value))


def _page_number(query: dict[str, str]) -> int:
    text = query.get("page", "")
    return min(int(text), 10**9) if text.isascii() and text.isdecimal() else 0


def _pages(query: dict[str, str], number: int, total: int, size: int) -> dict[str, Any]:
    """Returns what the links to other pages need."""
    last = max(0, -(-total // size) - 1)
    kept = {name: value for name, value in query.items() if name != "page" and value}

    def address(page: int) -> str:
        return "?" + urlencode({**kept, "page": page})

    return {
        "number": number,
        "last": last,
        "first": address(0),
        "previous": address(number - 1) if number > 0 else "",
        "next": address(number + 1) if number < last else "",
        "end": address(last),
    }


def serve(root: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves the page of a dataset until it is interrupted.

    Args:
        port: 0 for any that is free.
        on_ready: told the page's address once it answers.

    Raises:
        ConfigError: if the port is taken, or the dataset is on no disk of this machine.
        DatasetError: if there is no dataset.
    """
    import socket

    import uvicorn

    rows = DatasetRows(root)
    try:
        listening = socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be had: {error.strerror}") from error
    config = uvicorn.Config(Page(rows).app(), log_level="warning", access_log=False)
    on_ready(f"http://{LOOPBACK}:{listening.getsockname()[1]}/")
    uvicorn.Server(config).run(sockets=[listening])
