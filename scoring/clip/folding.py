"""Batch norms made part of the convolutions before them, which leaves a tower's output as it is."""

from collections import Counter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Types that are known to the last step; one derived from them may compute something else."""

UNTRACEABLE = (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError)
"""What tracing raises over a tower whose way depends on what it is given."""


def fold_norms(tower: nn.Module) -> int:
    """Returns how many batch norms of a tower were folded into the convolutions before them.

    In evaluation such a norm multiplies and adds what it has learned, as the convolution itself
    can. Alone it takes a pass over memory: of an EfficientNet's time on a CPU a seventh. The
    output stays the same to rounding in fp32; in less, weights that are rounded anew would move
    it. A tower that cannot be traced stays as it is.
    """
    pairs = _foldable(tower)
    for convolution, norm_name in pairs:
        _fold(tower, convolution, norm_name)
    return len(pairs)


class _Tracer(fx.Tracer):
    """Follows what a tower does, no deeper than to its convolutions and norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Returns whether a module is taken as a whole."""
        if type(m) in CONVOLUTIONS or isinstance(m, nn.BatchNorm2d):
            return True
        return not any(isinstance(part, nn.BatchNorm2d) for part in m.modules())


def _foldable(tower: nn.Module) -> list[tuple[nn.Conv2d, str]]:
    """Returns each convolution whose output goes to one norm and nowhere else, and its name."""
    if not any(isinstance(part, nn.BatchNorm2d) for part in tower.modules()):
        return []
    try:
        nodes = list(_Tracer().trace(tower).nodes)
    except UNTRACEABLE:
        return []
    modules: dict[str, Any] = dict(tower.named_modules())
    calls = [node for node in nodes if node.op == "call_module"]
    # One module may stand under several names.
    times = Counter(id(modules[str(node.target)]) for node in calls)
    found = []
    for node in calls:
        norm, before = modules[str(node.target)], node.args[0] if node.args else None
        if type(norm) not in NORMS or norm.training or norm.running_mean is None:
            continue
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = modules[str(before.target)]
        once = times[id(norm)] == times[id(convolution)] == 1
        if type(convolution) in CONVOLUTIONS and once:
            found.append((convolution, str(node.target)))
    return found


@torch.no_grad()
def _fold(tower: nn.Module, convolution: nn.Conv2d, norm_name: str) -> None:
    norm: Any = tower.get_submodule(norm_name)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)
    is_plain = type(norm) is nn.BatchNorm2d
    rest = nn.Identity() if is_plain else nn.Sequential(norm.drop, norm.act)
    parent, _, name = norm_name.rpartition(".")
    setattr(tower.get_submodule(parent), name, rest)
