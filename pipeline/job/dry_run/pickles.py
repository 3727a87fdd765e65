"""What a graph holds in pickled form: functions, coders and the like, by their step."""

import base64
import bz2
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.portability.common_urns import primitives

PARDO = primitives.PAR_DO.urn

COMBINE_PREFIX = "beam:transform:combine_"

PICKLED = ":pickled_python"
"""In the name of whatever Python has pickled. Source: apache_beam/portability/python_urns.py"""


@dataclass(frozen=True, slots=True)
class Pickled:
    """Something that a worker unpickles before it works."""

    owner: str
    """The step, or what else in the graph it belongs to."""
    data: bytes
    """As it stands in the graph: compressed, then in base64."""

    @property
    def plain(self) -> bytes:
        """The pickle itself, which holds texts as they are."""
        packed = base64.b64decode(self.data)
        # Beam compresses functions by the one, coders by the other.
        return zlib.decompress(packed) if packed[:1] == b"x" else bz2.decompress(packed)


def pickles_of(proto: Any) -> list[Pickled]:
    """Returns all that a graph holds in pickled form, in the order of its steps."""
    components = proto.components
    found = [
        Pickled(step.unique_name, spec.payload)
        for step in components.transforms.values()
        for spec in _specs_of_step(step)
    ]
    for name, part in [*components.coders.items(), *components.windowing_strategies.items()]:
        found += [Pickled(name, _coder_pickle(spec)) for spec in _specs(part)]
    return found


def _specs_of_step(step: Any) -> Iterator[Any]:
    urn, payload = step.spec.urn, step.spec.payload
    if urn == PARDO:
        yield from _specs(protos.ParDoPayload.FromString(payload))
    elif urn.startswith(COMBINE_PREFIX):
        yield from _specs(protos.CombinePayload.FromString(payload))
    elif PICKLED in urn:
        yield step.spec


def _specs(message: Any) -> Iterator[Any]:
    """Yields what is pickled in a message, at any depth."""
    if isinstance(message, protos.FunctionSpec):
        if PICKLED in message.urn:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values() if hasattr(value, "values") else ()
            parts = [one for one in values if hasattr(one, "ListFields")]
        else:
            parts = [value] if hasattr(value, "ListFields") else list(value)
        for part in parts:
            yield from _specs(part)


def _coder_pickle(spec: Any) -> bytes:
    """Returns the pickle of a coder, before which the name of its class may stand."""
    return bytes(spec.payload).rsplit(b"$", 1)[-1]
