"""An S3 server of this process that can be slow and refuse, as those of clouds do under load."""

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import s3fs
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

SLOW_DOWN = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Quiet(MotoRequestHandler):
    """Answers without a line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""


class FaultyStore:
    """The server, and its weather: which share of requests it refuses, and how long it waits."""

    def __init__(self, address: str, seed: int = 0) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(address, 0, self._answer, threaded=True, request_handler=Quiet)
        self._chance = random.Random(seed)
        self.refused_ratio = 0.0
        """Share of the requests that are answered by 503."""
        self.delay_seconds = 0.0
        """Before each answer."""
        self.refused = 0
        """Requests that were."""
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{address}:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(self.delay_seconds)
        if self._chance.random() < self.refused_ratio:
            self.refused += 1
            refusal = Response(SLOW_DOWN, status=503, content_type="application/xml")
            refusal.headers["Connection"] = "close"  # what was sent along is not read
            return refusal(environ, start)
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    def be_calm(self) -> None:
        """Answers all that is asked, at once."""
        self.refused_ratio = self.delay_seconds = 0.0

    def half_sent(self, bucket: str) -> list[str]:
        """Returns the names of uploads of several parts that were begun and not ended."""
        store = s3fs.S3FileSystem(use_listings_cache=False)
        found = store.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
        return [upload["Key"] for upload in found]

    def stop(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
