"""What a configuration calls the signals, and the columns that they become."""

import re
from dataclasses import dataclass
from typing import Literal

from schemas.errors import ConfigError
from schemas.records import OWN_NAMES

COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

FORMS = (
    "negclip, neighbours, head:FILE.safetensors, clip:MODEL/PRETRAINED, itm:MODEL or "
    "MODULE:FUNCTION, after NAME= under another name"
)

CLIP_MODEL = re.compile(r"(?P<model>(local-dir|hf-hub):.+)|(?P<name>[^/]+|.+?\.json)/(?P<tag>.+)")
"""A model of open_clip with its checkpoint, which those in a folder or a repository have within."""


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """A signal that is asked for."""

    kind: Literal["negclip", "neighbours", "head", "function", "clip", "itm"]
    argument: str
    """The file of a head, a model, MODULE:FUNCTION, or nothing."""
    name: str
    """Of its column."""

    @property
    def looks_at_pictures(self) -> bool:
        """Whether it needs a pass of a model of its own; the others read stored embeddings."""
        return self.kind in ("clip", "itm")

    @property
    def clip_model(self) -> tuple[str, str]:
        """Model and checkpoint of a `clip`, as `score.model` and `score.pretrained` name them."""
        found = CLIP_MODEL.fullmatch(self.argument)
        assert found is not None
        return found["model"] or found["name"], found["tag"] or ""


def parse_signals(spelled: tuple[str, ...]) -> tuple[SignalSpec, ...]:
    """Returns the signals that a configuration names, in the order of their columns.

    Raises:
        ConfigError: if one cannot be read, or two have one name.
    """
    found = sorted((_parse(text) for text in spelled), key=lambda spec: spec.name)
    names = [spec.name for spec in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"score.signals: two signals are called {name!r}; give one another name, as in "
                f"my_{name}=…"
            )
    return tuple(found)


def _parse(text: str) -> SignalSpec:
    given, sign, rest = text.partition("=")
    given, spelled = (given, rest) if sign and COLUMN.fullmatch(given) else ("", text)
    if spelled in ("negclip", "neighbours"):
        kind: Literal["negclip", "neighbours"] = "negclip" if spelled == "negclip" else "neighbours"
        spec = SignalSpec(kind, "", given or spelled)
    elif spelled.startswith("head:") and spelled != "head:":
        path = spelled.removeprefix("head:")
        stem = path.rsplit("/", 1)[-1].split(".", 1)[0]
        spec = SignalSpec("head", path, given or re.sub(r"\W", "_", stem).lower())
    elif spelled.startswith("clip:") and CLIP_MODEL.fullmatch(spelled.removeprefix("clip:")):
        model = spelled.removeprefix("clip:")
        last = CLIP_MODEL.fullmatch(model)
        assert last is not None
        spec = SignalSpec("clip", model, given or f"clip_{_plain(last['model'] or last['name'])}")
    elif spelled.startswith("itm:") and spelled != "itm:":
        model = spelled.removeprefix("itm:")
        spec = SignalSpec("itm", model, given or f"itm_{_plain(model)}")
    elif spelled.partition(":")[0] not in ("clip", "itm") and FUNCTION.fullmatch(spelled):
        spec = SignalSpec("function", spelled, given or spelled.partition(":")[2].lower())
    else:
        raise ConfigError(f"score.signals: {text!r} is no signal; give {FORMS}")
    if not COLUMN.fullmatch(spec.name) or spec.name in OWN_NAMES:
        problem = "is a column of every dataset" if spec.name in OWN_NAMES else "is no name"
        raise ConfigError(
            f"score.signals: {spec.name!r} {problem} (small letters, digits and _); give the "
            f"signal another one, as in my_signal={spelled}"
        )
    return spec


def _plain(model: str) -> str:
    """Returns the last part of a model's name or path, as a column may be called."""
    last = model.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].removesuffix(".json")
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")
