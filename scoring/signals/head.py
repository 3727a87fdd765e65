"""A head on stored image embeddings: a linear layer or several, as aesthetic and NSFW heads are.

The file is safetensors with a `weight` (out, in) and perhaps a `bias` (out,) for each layer, in the
order of the numbers in their names; the last layer has one output. Its metadata may say
`activation` (between layers) and `output`: none, relu, gelu, tanh or sigmoid; none by default, as
LAION's aesthetic predictor has.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.storage import exists, read_bytes
from scoring.signals.pairs import ScoredPairs

Array = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))),
    # Source: arXiv:1606.08415, the approximation by tanh.
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))),
}


@dataclass(frozen=True, slots=True)
class Head:
    """Layers that turn an image embedding into one number."""

    path: str
    sha256: str
    """Of the file."""
    layers: tuple[tuple[Array, Array], ...]
    """Weight (out, in) and bias (out,) of each."""
    activation: str
    output: str

    def values(self, pairs: ScoredPairs) -> NDArray[np.float32]:
        """Returns the head's number of each pair, (n,).

        Raises:
            ConfigError: if the head is for embeddings of another width.
        """
        width, wanted = pairs.image_embedding.shape[1], self.layers[0][0].shape[1]
        if width != wanted:
            raise ConfigError(
                f"score.signals: {self.path} is for embeddings of {wanted} numbers, the scoring "
                f"model's have {width}: take a head that was trained on this model"
            )
        hidden = pairs.image_embedding.astype(np.float64)
        for weight, bias in self.layers[:-1]:
            hidden = ACTIVATIONS[self.activation](hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        return ACTIVATIONS[self.output]((hidden @ weight.T + bias)[:, 0]).astype(np.float32)


def load_head(path: str) -> Head:
    """Returns the head in a file.

    Raises:
        ConfigError: if there is none, or it is no head.
    """
    # torch's own package, which a job without heads does not need.
    from safetensors import SafetensorError, deserialize

    if not exists(path):
        raise ConfigError(f"score.signals: there is no {path}; give the safetensors file of a head")
    data = read_bytes(path)
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
        tensors = {name: _array(told) for name, told in found}
        told = _metadata(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"score.signals: {path} is no safetensors file: {error}") from error
    activation, output = told.get("activation", "none"), told.get("output", "none")
    for name in (activation, output):
        if name not in ACTIVATIONS:
            raise ConfigError(
                f"score.signals: {path} says {name!r}; activation and output are one of "
                f"{', '.join(ACTIVATIONS)}"
            )
    return Head(path, hashlib.sha256(data).hexdigest(), _layers(path, tensors), activation, output)


def _layers(path: str, tensors: dict[str, Array]) -> tuple[tuple[Array, Array], ...]:
    def number(name: str) -> tuple[int, ...]:
        return tuple(int(digits) for digits in re.findall(r"\d+", name))

    names = sorted((name for name in tensors if name.endswith("weight")), key=number)
    layers = []
    for name in names:
        weight = tensors[name].reshape(1, -1) if tensors[name].ndim == 1 else tensors[name]
        bias = tensors.get(name.removesuffix("weight") + "bias", np.zeros(len(weight)))
        layers.append((weight, bias.reshape(-1)))
    widths = [weight.shape for weight, _ in layers]
    is_chain = all(before[0] == after[1] for before, after in pairwise(widths))
    if not layers or not is_chain or widths[-1][0] != 1:
        raise ConfigError(
            f"score.signals: {path} is no head: its layers are {widths or 'none'}, but each must "
            "take what the one before gives, and the last give one number"
        )
    return tuple(layers)


def _array(told: dict[str, object]) -> Array:
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    kind = kinds.get(str(told["dtype"]))
    if kind is None:
        raise ValueError(f"a tensor is of {told['dtype']}; F16, F32 and F64 can be read")
    data, shape = told["data"], told["shape"]
    assert isinstance(data, bytes | bytearray) and isinstance(shape, list | tuple)
    return np.frombuffer(bytes(data), kind).reshape(shape).astype(np.float64)


def _metadata(data: bytes) -> dict[str, str]:
    """Returns what the file says of itself. Source: the format of safetensors, its header."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
