"""What the command `serve` takes at the command line."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from schemas.errors import ConfigError, require_positive


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one who asks may take; more is refused with a reason."""

    body_bytes: int = 32 * 2**20
    """Of one request, its pictures among them."""
    image_bytes: int = 12 * 2**20
    """Of one picture as it is sent."""
    image_pixels: int = 40_000_000
    """Of one picture, width times height."""
    images: int = 8
    """Pictures of one request, over all its turns."""
    new_tokens: int = 1024
    """Longest answer."""
    answers: int = 4
    """Different answers to one question (n)."""
    answer_seconds: float = 300.0
    """From the request to the end of its answer, which is cut there."""
    body_seconds: float = 30.0
    """In which a request must have arrived."""
    connections: int = 512
    """Open at once; those that say nothing make room first."""

    def __post_init__(self) -> None:
        """Checks that there is something of each."""
        require_positive(self, vars(self), "limits.")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Put a model behind an address: an API after OpenAI's, and a page to talk to it.

    Programs ask http://HOST:PORT/v1 as they ask OpenAI's; people open http://HOST:PORT/.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's, which needs a key."""
    port: int = 8000
    """0 takes one that is free."""
    name: str = ""
    """What the model is called; by default as its folder, or as the run that it is of."""
    api_key: str = ""
    """Which all must send; better set as ALIGNGPT_API_KEY, which other users of this machine cannot
    see. On the page it is the password, of any name."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts from which pictures may be fetched when a request names their URL; none by default.
    Private addresses are never asked, and redirects never followed."""
    batch_size: int = 16
    """Answers that are made at once."""
    waiting: int = 64
    """Requests that may wait for their turn; more are told to come back later (429)."""
    page: bool = True
    """Whether there is a page at /, for people."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.batch_size < self.limits.answers:
            raise ConfigError(
                f"batch-size must be at least limits.answers ({self.limits.answers}), "
                f"got {self.batch_size}"
            )
        if self.waiting < 1:
            raise ConfigError(f"waiting must be at least 1, got {self.waiting}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be in 0..65535, got {self.port}")

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def served_name(self) -> str:
        """What the model is called."""
        folder = Path(self.model).resolve()
        return self.name or (folder.parent.name if folder.name == "model" else folder.name)
