"""What the command `chat` takes at the command line."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from training.config import SampleForm


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Ask a model about a picture; without a prompt, in turns at the terminal.

    At a terminal, /help lists what can be done beside asking. Elsewhere each line that is read is a
    question, and answers alone are printed.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder."""
    image: tuple[str, ...] = ()
    """Picture to talk about, or several, in their order."""
    prompt: str | None = None
    """The question; without one the conversation is interactive."""
    form: SampleForm = "conversation"
    """conversation asks by the chat template; caption lets a model of stage 1 say a caption."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest word each time; 1 draws by the model's own odds, up to 2."""
    top_p: float = 1.0
    """Draws among the likeliest words that together have this share of the odds."""
    seed: int | None = None
    """The same seed draws the same answers."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    level: int | None = None
    """Alignment level whose own vector is used, in place of the mode's mix."""
    mode: str | None = None
    """Alignment mode to answer in, where the model has the weights for another than its own."""
