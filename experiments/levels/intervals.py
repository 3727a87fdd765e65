"""Means with their 95 % intervals over the seeds, and how they are written."""

import numpy as np
from scipy.stats import t

Value = tuple[float, float, float]
"""Mean, and the low and high end of its 95 % interval."""
BySeed = dict[int, Value]


def summed(by_seed: BySeed) -> Value:
    """Returns mean and 95 % interval: over the seeds if there are three or more.

    Of one seed the interval is that over pictures, of two it holds those of both.
    """
    means = [mean for mean, _, _ in by_seed.values()]
    mean = float(np.mean(means))
    if len(means) < 3:
        lows, highs = zip(*((low, high) for _, low, high in by_seed.values()), strict=True)
        return mean, min(lows), max(highs)
    half = float(t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5)
    return mean, mean - half, mean + half


def spelled(value: Value) -> str:
    """Returns a mean with its interval."""
    return f"{value[0]:+.3f} ({value[1]:+.3f} to {value[2]:+.3f})"


def verdict(value: Value) -> str:
    """Returns what an interval shows."""
    if value[1] > 0:
        return "yes"
    return "no, the other way" if value[2] < 0 else "not seen"


def worth(by_seed: BySeed) -> str:
    """Returns mean and interval over the seeds, and in words where they show nothing or less."""
    value = summed(by_seed)
    words = {"yes": "", "not seen": "; not seen", "no, the other way": "; worse"}
    return f"{spelled(value)[:-1]}{words[verdict(value)]})"


def seeds(by_seed: BySeed) -> str:
    """Returns of how many seeds, and of what the interval is where they are too few."""
    told = f"{len(by_seed)} seeds" if len(by_seed) > 1 else "one seed"
    return told if len(by_seed) > 2 else f"{told}, interval over pictures"
