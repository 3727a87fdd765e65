"""A second look at pictures whose embeddings are close: whether they look the same.

An embedding says what a picture shows, and forgets which light of a traffic light is on or which
way a sign points. So a small copy of every picture is kept, squeezed to a square, and two of them
are compared in three steps:

1. *Colour*: gain and offset of each channel are fitted within narrow bounds, so that a slight shift
   of colour costs nothing and another colour does.
2. *Cut*: each edge of one copy is moved by at most `REACH` of its side until it fits the other best
   (Gauss-Newton on the four edges), so that a picture somewhat cropped costs nothing. Both copies
   are moved, and both are compared unmoved too; what differs least counts.
3. *What is left*: both are smoothed, which thin lines that fall between two pixels need; then at
   each place the difference to the nearest value within one pixel of the other copy, averaged over
   four places. The largest is how different the two look: 0 to 255.

A place at which even copies of 8 pixels differ by more decides alone. The same number comes out
whatever the order of a pair, and whatever it is compared together with.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

COARSE_SIDE = 8
ALIGNED_SIDES = (16, 32)
"""Sizes at which the edges are moved, coarse to fine."""
CHANNELS = 3
REACH = 0.07
"""How far an edge is moved, as a share of the side: somewhat more than a cut of a twentieth."""
MAX_GAIN, MAX_OFFSET = 0.07, 8.0
"""How far a channel's gain may be from 1, and its offset from 0 of 255."""
STEPS = 3
"""At each size."""
DAMPING = 1e-3
PAIRS_AT_ONCE = 256

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Looks:
    """The small copies of some pictures, decoded when they are first looked at."""

    def __init__(self, thumbnails: pa.Array) -> None:
        self._files = thumbnails
        self._decoded: dict[int, Floats] = {}

    def differences(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> Floats:
        """Returns how different pairs of rows look, (m,), 0 to 255; NaN where a copy is missing."""
        return self._compare(left, right, look_differences)

    def are_alike(
        self, left: NDArray[np.int64], right: NDArray[np.int64], limit: float
    ) -> NDArray[np.bool_]:
        """Returns whether pairs of rows differ by no more than the limit, (m,).

        A pair of which a copy is missing is taken for alike.
        """

        def compare(one: Floats, other: Floats) -> Floats:
            return look_differences(one, other, limit)

        return ~(self._compare(left, right, compare) > limit)

    def _compare(
        self,
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        compare: Callable[[Floats, Floats], Floats],
    ) -> Floats:
        found = np.full(len(left), np.nan, np.float32)
        sides: dict[int, list[int]] = {}
        for place, rows in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            sizes = [0 if (copy := self._copy(row)) is None else len(copy) for row in rows]
            if min(sizes):
                sides.setdefault(min(sizes), []).append(place)
        for side, places in sides.items():
            for start in range(0, len(places), PAIRS_AT_ONCE):
                some = np.array(places[start : start + PAIRS_AT_ONCE])
                found[some] = compare(self._stack(left[some], side), self._stack(right[some], side))
        return found

    def _copy(self, row: int) -> Floats | None:
        if row not in self._decoded and self._files[row].is_valid:
            pixels = simplejpeg.decode_jpeg(self._files[row].as_py(), colorspace="RGB")
            self._decoded[row] = pixels.astype(np.float32)
        return self._decoded.get(row)

    def _stack(self, rows: NDArray[np.int64], side: int) -> Floats:
        copies = [self._copy(row) for row in rows.tolist()]
        return np.stack([_shrunk(copy[None], side)[0] for copy in copies if copy is not None])


def look_differences(left: Floats, right: Floats, limit: float | None = None) -> Floats:
    """Returns how different pairs of copies look, (m,), 0 to 255.

    Args:
        left: (m, n, n, 3), 0 to 255; n is a power of two.
        right: the same.
        limit: if given, numbers need only be right as to whether they are above it; that is
            found in less time.
    """
    everywhere = np.ones(left.shape[:3], np.bool_)
    coarse = _largest(
        _shrunk(left, COARSE_SIDE),
        _shrunk(right, COARSE_SIDE),
        np.ones((len(left), COARSE_SIDE, COARSE_SIDE), np.bool_),
    )
    found = np.maximum(coarse, _largest(left, right, everywhere))
    is_open = np.ones(len(left), np.bool_) if limit is None else (coarse <= limit) & (found > limit)
    rows = np.flatnonzero(is_open)
    for one, other in ((left[rows], right[rows]), (right[rows], left[rows])):
        if len(rows):
            moved, is_seen = _move_edges(one, _aligned_edges(one, other))
            moved = _largest(moved, other, is_seen)
            found[rows] = np.minimum(found[rows], np.maximum(coarse[rows], moved))
    return found


def _largest(left: Floats, right: Floats, is_seen: Mask) -> Floats:
    """Returns the largest of what is left, (m,), where both copies show something."""
    left, right = _smooth(left), _smooth(right)
    either: list[Floats] = []
    for one, other in ((left, right), (right, left)):
        fitted = _fit_colours(one, other, is_seen)
        apart = np.maximum(_beyond(fitted, other), _beyond(other, fitted)).max(axis=3) * is_seen
        pairs = (apart[:, 1:] + apart[:, :-1]) / 2
        squares = (pairs[:, :, 1:] + pairs[:, :, :-1]) / 2
        either.append(squares.max(axis=(1, 2)))
    return np.minimum(*either)


def _fit_colours(copies: Floats, like: Floats, is_seen: Mask) -> Floats:
    """Returns the copies with gain and offset of each channel fitted to others."""
    weight = is_seen[..., None].astype(np.float32)
    count = weight.sum(axis=(1, 2), keepdims=True) + 1e-6
    mean = (copies * weight).sum(axis=(1, 2), keepdims=True) / count
    wanted = (like * weight).sum(axis=(1, 2), keepdims=True) / count
    away = (copies - mean) * weight
    together = (away * (like - wanted)).sum(axis=(1, 2), keepdims=True)
    gain = together / ((away * away).sum(axis=(1, 2), keepdims=True) + 1e-3)
    gain = np.clip(gain, 1 - MAX_GAIN, 1 + MAX_GAIN)
    offset = np.clip(wanted - gain * mean, -MAX_OFFSET, MAX_OFFSET)
    fitted: Floats = np.clip(copies * gain + offset, 0, 255).astype(np.float32)
    return fitted


def _beyond(values: Floats, others: Floats) -> Floats:
    """Returns how far values are outside of what the others hold within one pixel."""
    rows = np.pad(others, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    near = [rows[:, 1:-1], rows[:, :-2], rows[:, 2:]]
    upper, lower = np.maximum.reduce(near), np.minimum.reduce(near)
    upper = np.pad(upper, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    lower = np.pad(lower, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    upper = np.maximum.reduce([upper[:, :, 1:-1], upper[:, :, :-2], upper[:, :, 2:]])
    lower = np.minimum.reduce([lower[:, :, 1:-1], lower[:, :, :-2], lower[:, :, 2:]])
    beyond: Floats = np.maximum(0, np.maximum(values - upper, lower - values)).astype(np.float32)
    return beyond


def _aligned_edges(copies: Floats, like: Floats) -> Floats:
    """Returns how far the left, right, upper and lower edge of each copy are moved, (m, 4).

    Shares of the side, positive to the right and down. Source: Lucas and Kanade, An iterative image
    registration technique (1981), for a window whose edges move.
    """
    edges = np.zeros((len(copies), 4), np.float32)
    for side in ALIGNED_SIDES:
        smaller, wanted = _smooth(_shrunk(copies, side)), _smooth(_shrunk(like, side))
        for _ in range(STEPS):
            edges = np.clip(edges + _step(smaller, wanted, edges), -REACH, REACH)
    return edges


def _step(copies: Floats, like: Floats, edges: Floats) -> Floats:
    """Returns the step of Gauss and Newton from these edges, (m, 4)."""
    count, side = copies.shape[:2]
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    moved, is_seen = _move_edges(copies, edges)
    moved = _fit_colours(moved, like, is_seen)
    rest = (like - moved).mean(axis=3) * is_seen
    grey = moved.mean(axis=3)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, :, 1:-1] = (grey[:, :, 2:] - grey[:, :, :-2]) * (side / 2)
    down[:, 1:-1] = (grey[:, 2:] - grey[:, :-2]) * (side / 2)
    slopes = [across * (1 - place), across * place]
    slopes += [down * (1 - place)[:, None], down * place[:, None]]
    design = (np.stack(slopes, axis=-1) * is_seen[..., None]).reshape(count, -1, 4)
    normal = design.transpose(0, 2, 1) @ design
    trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    normal = normal + np.eye(4, dtype=np.float32) * (DAMPING * trace + 1)
    step = np.linalg.solve(normal, design.transpose(0, 2, 1) @ rest.reshape(count, -1, 1))
    found: Floats = step[:, :, 0].astype(np.float32)
    return found


def _move_edges(copies: Floats, edges: Floats) -> tuple[Floats, Mask]:
    """Returns the copies cut at these edges, and where they show what they held, (m, n, n)."""
    count, side = copies.shape[:2]
    across, is_across = _weights(edges[:, :2], side)
    down, is_down = _weights(edges[:, 2:], side)
    rows = (down @ copies.reshape(count, side, -1)).reshape(copies.shape)
    moved: Floats = (across[:, None] @ rows).astype(np.float32)
    return moved, is_down[:, :, None] & is_across[:, None, :]


def _weights(edges: Floats, side: int) -> tuple[Floats, Mask]:
    """Returns the weights of linear interpolation along one axis, (m, n, n), and what it saw."""
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    found = (edges[:, :1] * (1 - place) + (1 + edges[:, 1:]) * place) * side - 0.5
    is_inside = (found > -0.75) & (found < side - 0.25)
    apart = np.abs(np.clip(found, 0, side - 1)[:, :, None] - np.arange(side, dtype=np.float32))
    return np.maximum(0, 1 - apart).astype(np.float32), is_inside


def _smooth(copies: Floats) -> Floats:
    rows = np.pad(copies, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = rows[:, 1:-1] * 2 + rows[:, :-2] + rows[:, 2:]
    columns = rows[:, :, 1:-1] * 2 + rows[:, :, :-2] + rows[:, :, 2:]
    smooth: Floats = (columns / 16).astype(np.float32)
    return smooth


def _shrunk(copies: Floats, side: int) -> Floats:
    """Returns the copies at this side, or as they are if they are no larger."""
    factor = copies.shape[1] // side
    if factor <= 1:
        return copies
    shape = (len(copies), side, factor, side, factor, CHANNELS)
    smaller: Floats = copies.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
    return smaller
