"""ICC profiles made by hand, byte by byte, and what their colours are in sRGB.

Source: ICC.1:2001-04 (version 2 of the format); primaries of the colour spaces' own standards.
"""

import struct

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

D50 = (0.9642, 1.0, 0.8249)

SRGB = [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
P3 = [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
ADOBE = [[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]]
PROPHOTO = [[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]]
SWAPPED = [[row[1], row[2], row[0]] for row in SRGB]
"""Columns are the primaries' XYZ under D50."""


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(value) for value in values)


def _curve(gamma: float | None) -> bytes:
    """A power, or sRGB's curve as a table."""
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    table = srgb_linear(np.linspace(0, 1, 1024))
    points = b"".join(struct.pack(">H", round(float(point) * 65535)) for point in table)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + points


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"made by hand\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    size = start + len(body)
    header = struct.pack(">I", size) + b"lcms\x02\x10\0\0" + kind + space + connection + date
    header += b"acsp" + bytes(28) + b"".join(_fixed(value) for value in D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: list[list[float]], gamma: float | None = None) -> bytes:
    """Returns a profile of three primaries and one curve; without a gamma, sRGB's curve."""
    columns = list(zip(*primaries, strict=True))
    tags = {
        name: _xyz(column)
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    tags |= {name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float | None) -> bytes:
    """Returns a profile of one channel."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """Returns a profile of a press whose cyan ink is as yellow as its yellow ink is cyan."""
    inks = {  # lightness, a, b of paper under each ink alone, as 8 bits of Lab
        "cyan": (226, 118, 218),
        "magenta": (123, 202, 122),
        "yellow": (142, 93, 79),
    }
    corners = bytearray()
    for number in range(16):
        mix = np.array([255.0, 128.0, 128.0])
        for bit, ink in zip((8, 4, 2), inks.values(), strict=True):
            if number & bit:
                mix = np.array([mix[0] * ink[0] / 255, *(mix[1:] + np.array(ink[1:]) - 128)])
        if number & 1:
            mix[0] *= 0.1
        corners += bytes(int(value) for value in np.clip(mix, 0, 255))
    straight = bytes(range(256))
    matrix = b"".join(_fixed(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + straight * 4 + bytes(corners)
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table + straight * 3})


def srgb_linear(values: Array) -> Array:
    """Returns light from sRGB's values, both in 0..1. Source: IEC 61966-2-1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_srgb(
    pixels: npt.NDArray[np.uint8], primaries: list[list[float]], gamma: float | None = None
) -> npt.NDArray[np.uint8]:
    """Returns what pixels (..., 3) of such a profile are in sRGB, as far as it can hold them."""
    values = pixels / 255.0
    light = srgb_linear(values) if gamma is None else values**gamma
    linear = light @ np.array(primaries).T @ np.linalg.inv(np.array(SRGB)).T
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)
