"""Where a checkpoint of others lies, and of what kind it is."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub.constants
import pytest

from schemas.errors import ConfigError
from training.model.published.source import Source, find_source, kind_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub with one model of two files, and weights that nobody needs."""

    files = {"config.json": b"{}", "model.safetensors": b"1", "pytorch_model.bin": b"2"}  # noqa: RUF012

    def do_GET(self):
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": n, "size": 2, "oid": "0"} for n in self.files]
            self.answer(json.dumps(entries).encode())
        elif self.path.startswith("/api/models/some/model"):
            siblings = [{"rfilename": name} for name in self.files]
            answer = {"id": "some/model", "modelId": "some/model", "sha": COMMIT}
            self.answer(json.dumps({**answer, "siblings": siblings}).encode())
        elif self.path.startswith(f"/some/model/resolve/{COMMIT}/"):
            self.answer(self.files[self.path.rsplit("/", 1)[1]])
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield address
    server.shutdown()
    server.server_close()


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="some/model is no folder here, and the hub"):
        find_source("some/model")


def test_a_name_of_the_hub_is_downloaded_and_its_commit_recorded(hub):
    source = find_source("some/model")
    assert source.name == f"some/model@{COMMIT}"
    assert {file.name for file in source.path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_name_that_the_hub_does_not_have_is_told_in_a_sentence(hub):
    with pytest.raises(ConfigError, match="some/other is no folder here, and the hub"):
        find_source("some/other")


def test_what_lies_here_is_taken_as_it_is_named(tmp_path):
    assert find_source(str(tmp_path)) == Source(tmp_path, str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "./some/model", "a/b/c", "~/model", "/no/such"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(name):
    with pytest.raises(ConfigError, match="does not exist: give a folder, a file, or a name"):
        find_source(name)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"model_type": "llava", "text_config": {}, "vision_config": {}}, "llava_hf"),
        ({"model_type": "llava", "mm_hidden_size": 8}, "published"),
        ({"model_type": "aligngpt", "use_mm_proj": True}, "published"),
    ],
)
def test_a_checkpoint_is_of_the_code_that_its_settings_are_of(settings, kind, tmp_path):
    assert kind_of(settings, tmp_path) == kind
