"""The demo's web site: the bundled pictures, and the faults that the real web has.

Serves on this machine only, from a thread.
"""

import functools
import http.server
import io
import threading
from pathlib import Path
from types import TracebackType

from PIL import Image

PAGE = b"<!doctype html><title>Not a picture</title><p>This page was never an image.</p>"
PRIVATE_URL = "http://10.0.0.1/secret.png"


class DemoHandler(http.server.SimpleHTTPRequestHandler):
    """Answers with a picture of the corpus, or misbehaves as the path's first part says."""

    def do_GET(self) -> None:
        """Answers one request."""
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "page":
            self._answer(200, "image/png", PAGE)
        elif kind == "redirect-to-private":
            self.send_response(302)
            self.send_header("Location", PRIVATE_URL)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "truncated":
            whole = self._reencoded(rest, quality=90, scale=1.0)
            self._answer(200, "image/jpeg", whole[: len(whole) // 2])
        elif kind == "smaller":
            self._answer(200, "image/jpeg", self._reencoded(rest, quality=80, scale=0.9))
        else:
            super().do_GET()

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reencoded(self, name: str, quality: int, scale: float) -> bytes:
        path = Path(self.translate_path("/" + name))
        with Image.open(path) as opened:
            upright = opened.convert("RGBA")
        flat = Image.new("RGB", upright.size, "white")
        flat.paste(upright, mask=upright.getchannel("A"))
        size = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
        encoded = io.BytesIO()
        flat.resize(size).save(encoded, "JPEG", quality=quality)
        return encoded.getvalue()

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the terminal for the demo."""


class DemoServer:
    """The web site, for the length of a `with` block."""

    def __init__(self, folder: Path, address: str, port: int) -> None:
        handler = functools.partial(DemoHandler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer((address, port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "DemoServer":
        """Starts to answer."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops to answer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
