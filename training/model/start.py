"""Where a new projector starts: at the scale of words, or from a map computed in closed form.

`paper` leaves PyTorch's own random weights, as LLaVA and AlignGPT do. The others standardise what
the projector reads, and what it says has a given spread, beside that of the words' embeddings:

    scaled       random weights
    regression   a ridge regression from a picture to the mean embedding of the words said about it

The regression needs sums alone, so it is streamed. With x a picture's standardised features, mean
over its vectors, and y the mean embedding of its words, both centred:

    W = (X'X + strength * n * I)^-1 X'Y

The strength is the best on pairs held out from the sums, a tenth of them; their R squared is what
is reported. Layers behind the first start so that the whole equals the map: GELU(z) - GELU(-z) = z,
so a hidden layer that holds z and -z passes it on. A hidden layer of D units has room for rank D/2:
the map is cut to the directions that explain most of what it says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from training.config import ProjectorStart
from training.model.projector import Projector

SMALLEST_SPREAD = 1e-3
"""Channels that vary by less than this share of the mean spread are scaled as if by it."""
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Of the ridge, tried on the held-out pairs."""
EVERY_NTH_IS_HELD_OUT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """What a computed start came to."""

    pairs: int
    held_out: int
    r_squared: float
    """On the held-out pairs; 1 is perfect, 0 as good as the mean."""
    strength: float

    def __str__(self) -> str:
        """Returns it in words."""
        return (
            f"from {self.pairs:,} pairs; on {self.held_out:,} others R squared "
            f"{self.r_squared:.3f} (ridge {self.strength:g})"
        )


class FeatureMoments:
    """Sums over pictures and what is said about them, from which a start is computed.

    Shapes: n pictures, R vectors of each, W channels, D hidden size.
    """

    def __init__(self, channels: int, hidden_size: int) -> None:
        self.vectors = 0
        self.sums = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)
        width = channels + hidden_size + 1
        self._products = torch.zeros(2, width, width, dtype=torch.float64)
        self._channels = channels
        self._pairs = 0

    def add(self, features: Tensor, embeddings: Tensor) -> None:
        """Takes pictures, (n, R, W), and the mean embeddings of their words, (n, D)."""
        values = features.detach().double().cpu()
        self.vectors += values.shape[0] * values.shape[1]
        self.sums += values.sum(dim=(0, 1))
        self.squares += values.square().sum(dim=(0, 1))
        ones = torch.ones(len(values), 1, dtype=torch.float64)
        rows = torch.cat([values.mean(dim=1), embeddings.detach().double().cpu(), ones], dim=1)
        numbers = torch.arange(self._pairs, self._pairs + len(rows))
        is_held_out = numbers % EVERY_NTH_IS_HELD_OUT == EVERY_NTH_IS_HELD_OUT - 1
        for part, chosen in enumerate((rows[~is_held_out], rows[is_held_out])):
            self._products[part] += chosen.T @ chosen
        self._pairs += len(rows)

    def standardisation(self) -> tuple[Tensor, Tensor]:
        """Returns each channel's mean and one over its spread, (W,)."""
        mean = self.sums / self.vectors
        spread = (self.squares / self.vectors - mean.square()).clamp(min=0).sqrt()
        floor = float(spread.mean()) * SMALLEST_SPREAD
        return mean, 1.0 / spread.clamp(min=max(floor, torch.finfo(torch.float32).tiny))

    def regression(self) -> tuple[Tensor, Tensor, StartReport]:
        """Returns the map (W, D) of standardised features, its value at their mean (D,), a report.

        Raises:
            ConfigError: if there are too few pairs.
        """
        mean, scale = self.standardisation()
        train, held_out = (self._standardised(part, mean, scale) for part in self._products)
        counts = [int(part[-1, -1]) for part in (train, held_out)]
        if min(counts) < 2:
            raise ConfigError(
                f"model.projector_start regression needs at least {2 * EVERY_NTH_IS_HELD_OUT} "
                f"pictures, got {self._pairs}: take scaled"
            )
        best = max(
            STRENGTHS, key=lambda strength: _r_squared(train, held_out, self._channels, strength)
        )
        report = StartReport(
            pairs=counts[0],
            held_out=counts[1],
            r_squared=_r_squared(train, held_out, self._channels, best),
            strength=best,
        )
        weights, at_mean = _ridge(train, self._channels, best)
        return weights, at_mean, report

    def _standardised(self, products: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns the products as if the features had been standardised before."""
        width = products.shape[0]
        change = torch.eye(width, dtype=torch.float64)
        channels = self._channels
        change[:channels, :channels] = torch.diag(scale)
        change[-1, :channels] = -mean * scale
        return change.T @ products @ change


def _ridge(products: Tensor, channels: int, strength: float) -> tuple[Tensor, Tensor]:
    """Returns the map (W, D) and the constant (D,) from products of [x, y, 1]."""
    count = products[-1, -1]
    means = products[-1, :-1] / count
    centred = products[:-1, :-1] - count * torch.outer(means, means)
    gram = centred[:channels, :channels]
    gram = gram + strength * count * torch.eye(channels, dtype=torch.float64)
    weights = torch.linalg.solve(gram, centred[:channels, channels:])
    return weights, means[channels:] - means[:channels] @ weights


def _r_squared(train: Tensor, held_out: Tensor, channels: int, strength: float) -> float:
    """Returns how much of the held-out embeddings' variance the map explains."""
    weights, constant = _ridge(train, channels, strength)
    hidden = weights.shape[1]
    error = torch.cat([-weights, torch.eye(hidden, dtype=torch.float64), -constant[None]])
    residual = torch.einsum("id,ij,jd->", error, held_out, error)
    mean = train[-1, channels:-1] / train[-1, -1]
    total = held_out[channels:-1, channels:-1].trace()
    total = total - 2 * (held_out[-1, channels:-1] @ mean) + held_out[-1, -1] * mean.square().sum()
    return float(1.0 - residual / total)


def word_spread(embeddings: Tensor) -> float:
    """Returns the spread of the words' embeddings (V, D): root mean square around their mean."""
    values = embeddings.detach().float()
    return float((values - values.mean(dim=0)).square().mean().sqrt())


@torch.no_grad()
def start_projector(
    projector: Projector,
    moments: FeatureMoments,
    features: Tensor,
    spread: float,
    start: ProjectorStart,
) -> StartReport | None:
    """Sets the weights of a new projector; returns what a regression came to.

    Args:
        features: (n, R, W) of some pictures, on which the spread is set.
        spread: root mean square of the vectors around their mean.
    """
    if start == "paper":
        return None
    mean, scale = moments.standardisation()
    projector.feature_mean.copy_(mean)
    projector.feature_scale.copy_(scale)
    linears = [layer for layer in projector.layers if isinstance(layer, nn.Linear)]
    if not linears:
        raise ConfigError(f"model.projector_start {start} needs a projector that learns")
    report = None
    if start == "regression":
        weights, at_mean, report = moments.regression()
        _set_map(linears, weights)
        linears[-1].bias.copy_(at_mean)
    said = projector(features.to(linears[0].weight.dtype), is_reduced=True).float()
    found = float((said - said.mean(dim=(0, 1))).square().mean().sqrt())
    factor = spread / max(found, torch.finfo(torch.float32).tiny)
    linears[-1].weight.mul_(factor)
    if start == "scaled":
        linears[-1].bias.zero_()
    return report


def _set_map(linears: list[nn.Linear], weights: Tensor) -> None:
    """Makes the layers together the linear map (W, D), as far as the hidden width has room."""
    for layer in linears:
        layer.bias.zero_()
    if len(linears) == 1:
        linears[0].weight.copy_(weights.T)
        return
    hidden = linears[0].out_features
    rank = min(hidden // 2, *weights.shape)
    left, sizes, right = torch.linalg.svd(weights, full_matrices=False)
    inner = left[:, :rank] * sizes[:rank].sqrt()  # (W, rank)
    outer = right[:rank].T * sizes[:rank].sqrt()  # (D, rank)
    both = torch.eye(rank, dtype=weights.dtype)
    for layer in linears:
        layer.weight.zero_()
    linears[0].weight[:rank].copy_(inner.T)
    linears[0].weight[rank : 2 * rank].copy_(-inner.T)
    for layer in linears[1:-1]:
        layer.weight[:rank, :rank].copy_(both)
        layer.weight[:rank, rank : 2 * rank].copy_(-both)
        layer.weight[rank : 2 * rank, :rank].copy_(-both)
        layer.weight[rank : 2 * rank, rank : 2 * rank].copy_(both)
    linears[-1].weight[:, :rank].copy_(outer)
    linears[-1].weight[:, rank : 2 * rank].copy_(-outer)
