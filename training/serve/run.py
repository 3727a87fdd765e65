"""Serving from the start to the end: the command `serve`."""

import logging
import os
import socket
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from schemas.errors import ConfigError
from schemas.terminal import Console
from training.parts import Assembled, load_to_answer
from training.serve.api import build_app
from training.serve.commands import Serve
from training.serve.connections import Doorkeeper
from training.serve.service import Service

KEY_VARIABLE = "ALIGNGPT_API_KEY"
BACKLOG = 2048
SECONDS_TO_END = 5


def serve(command: Serve) -> int:
    """Serves until it is told to end; returns 0, or 1 if answering ended before.

    Raises:
        ConfigError: if there is no such model, the address is not free, or others could reach it
            without a key.
    """
    key = api_key(command)
    listening = listen(command)
    command = replace(command, port=listening.getsockname()[1])
    try:
        parts = load_to_answer(command.model)
        check_template(parts, command.model)
        server = Server(parts, command, key)
        host = f"[{command.host}]" if ":" in command.host else command.host
        console = Console(highlight=False)
        console.print(f"{command.served_name} answers at http://{host}:{command.port}/v1")
        if command.page:
            console.print(f"talk to it at http://{host}:{command.port}/ (Ctrl-C ends it)")
        return server.run(listening)
    finally:
        listening.close()


def api_key(command: Serve) -> str:
    """Returns the key of the server, empty for none.

    Raises:
        ConfigError: if others can reach it, and there is none.
    """
    key = command.api_key or os.environ.get(KEY_VARIABLE, "")
    if not key and not command.is_local:
        raise ConfigError(
            f"--host {command.host} lets others reach the model: set a key for them as "
            f"{KEY_VARIABLE} or --api-key, or listen at 127.0.0.1"
        )
    return key


def listen(command: Serve) -> socket.socket:
    """Returns a socket that listens at the command's address.

    Raises:
        ConfigError: if it cannot be had.
    """
    try:
        found = socket.getaddrinfo(command.host, command.port, type=socket.SOCK_STREAM)
        return socket.create_server(
            found[0][4][:2], family=found[0][0], backlog=BACKLOG, reuse_port=False
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {command.host} port {command.port} ({error.strerror}): choose "
            "another --port (0 takes one that is free) or --host"
        ) from error


def check_template(parts: Assembled, folder: str) -> None:
    """Raises `ConfigError` if the model cannot be asked in turns."""
    if parts.processor.chat_template is None:
        raise ConfigError(
            f"{folder} has no chat template, so it cannot be asked in turns: give the folder a "
            "chat_template.jinja"
        )


class Server:
    """The application with its engine, on one socket."""

    def __init__(self, parts: Assembled, command: Serve, key: str = "") -> None:
        self.service = Service(parts, command, on_end=self._stop)
        self._app = build_all(self.service, key)
        config = uvicorn.Config(
            self._app,
            http=Doorkeeper(command.limits.connections).protocol(),
            ws="none",
            lifespan="on",
            log_level="warning",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_END,
        )
        self._uvicorn = uvicorn.Server(config)
        self._is_told = False

    def run(self, listening: socket.socket) -> int:
        """Serves; returns 0 when told to end, 1 if answering ended by itself."""
        logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
        self.service.start()
        try:
            self._uvicorn.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn raises it again when all is closed
            pass
        finally:
            has_failed = not self.service.engine.is_alive
            self.service.close()
        return int(has_failed)

    def stop(self) -> None:
        """Ends serving, from another thread."""
        self._uvicorn.should_exit = True

    def _stop(self) -> None:
        self._uvicorn.should_exit = True


def build_all(service: Service, key: str) -> FastAPI:
    """Returns the routes for programs, and the page for people at `/`."""
    app = build_app(service, key)
    if service.command.page:
        from training.serve.page import add_page  # Gradio takes seconds to import

        app = add_page(app, service, key)
    return app
