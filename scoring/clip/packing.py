"""Linear layers with weights that lie as a processor multiplies by them, not as they load."""

import platform
from collections.abc import Set
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import nn

from schemas.arithmetic import fast_arithmetic

USUAL_ROWS = 800
"""Tokens that the layout is chosen for: 16 pictures of 50. It serves other batches as well."""

QUICK = 1.702
"""QuickGELU is x sigmoid(1.702 x)."""

CALLED_ONLY: dict[type[nn.Module], tuple[str, ...]] = {
    Mlp: ("fc1", "fc2"),
    Attention: ("qkv", "proj"),
}
"""timm's modules, of ViT and ConvNeXt, and their linear layers, which they call and no more."""


def can_pack(dtype: torch.dtype) -> bool:
    """Returns whether this processor multiplies by packed weights of this type, and fast.

    Source: `benchmarks/score_memory.py` on x86 with AVX2 and AVX-512. Others were not measured.
    """
    is_known = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    if not is_known or dtype != torch.bfloat16:
        return is_known and dtype == torch.float32
    return fast_arithmetic("cpu").precision == "bf16" and lays_out_bf16()


def lays_out_bf16() -> bool:
    """Returns whether oneDNN lays weights of bf16 out here: it asks for more than it multiplies by.

    A dataset that began in bf16 elsewhere goes on in it where this cannot be.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_linears(model: nn.Module) -> int:
    """Returns how many linear layers of a model on a CPU were exchanged for packed ones.

    Those of open_clip's and timm's own modules, which are known to the last step; of open_clip's
    the whole block. The output stays the same to rounding.
    """
    types = {dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype)}
    places = [
        (parent, name)
        for parent in model.modules()
        for name, part in parent.named_children()
        if _is_known(part, types)
        or (name in CALLED_ONLY.get(type(parent), ()) and _is_packable(part, types))
    ]
    for parent, name in places:  # one by one, so that no two copies of all weights are held
        part: Any = parent.get_submodule(name)
        packed = (
            PackedLinear(part.weight, part.bias) if type(part) is nn.Linear else PackedBlock(part)
        )
        setattr(parent, name, packed)
    return sum(isinstance(part, PackedLinear) for part in model.modules())


def _is_packable(layer: Any, types: Set[torch.dtype]) -> bool:
    return type(layer) is nn.Linear and layer.bias is not None and layer.weight.dtype in types


def _is_known(block: nn.Module, types: Set[torch.dtype]) -> bool:
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention: Any = block.attn
    return (
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention.out_proj.weight.dtype in types
    )


def packed_product() -> Any:
    """Returns oneDNN's product with packed weights, which a torch without oneDNN does not have."""
    return torch.ops.mkldnn._linear_pointwise


class PackedLinear(nn.Module):
    """A linear layer by oneDNN, with an activation after it.

    MKL, which multiplies for torch on x86, lays the weights out anew for each batch.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, activation: str = "none") -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS)
        self._product = packed_product()
        self._bias = bias
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (..., out) of (..., in)."""
        y: torch.Tensor = self._product(x, self._weight, self._bias, self._activation, [], "none")
        return y


class PackedBlock(nn.Module):
    """What open_clip's `ResidualAttentionBlock` computes in evaluation.

    Shapes: B sequences, L tokens, D width, H heads.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self._dtype: torch.dtype = attention.out_proj.weight.dtype
        self.heads = attention.num_heads
        self.ln_1, self.ls_1, self.ln_2, self.ls_2 = block.ln_1, block.ls_1, block.ln_2, block.ls_2
        self.qkv = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)
        self.mlp = _packed_mlp(block.mlp)

    def get_weight_dtype(self) -> torch.dtype:
        """Returns the type of the weights, which open_clip asks for."""
        return self._dtype

    def forward(
        self,
        q_x: torch.Tensor,
        k_x: None = None,
        v_x: None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns (B, L, D) of (B, L, D).

        Args:
            attn_mask: what is added to the logits of the attention: (L, L) or (B H, L, L).
        """
        x: torch.Tensor = q_x + self.ls_1(self._attend(self.ln_1(q_x), attn_mask))
        x += self.ls_2(self.mlp(self.ln_2(x)))
        return x

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)  # each (B, H, L, D / H)
        if mask is not None:
            mask = mask.to(x.dtype).view(-1, 1 if mask.ndim == 2 else self.heads, length, length)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended


def _packed_mlp(layers: Any) -> nn.Sequential:
    """Returns a block's two linear layers with the activation as part of the first if it can be.

    oneDNN has no QuickGELU, but x sigmoid(x): weights take the factor before and after it, in fp32
    alone, since they are rounded anew.
    """
    first, last, activation = layers.c_fc, layers.c_proj, layers.gelu
    weight, bias, last_weight, name = first.weight, first.bias, last.weight, "none"
    if type(activation) is nn.GELU and activation.approximate == "none":
        name, activation = "gelu", nn.Identity()
    elif type(activation) is QuickGELU and weight.dtype == torch.float32:
        weight, bias, last_weight = weight * QUICK, bias * QUICK, last_weight / QUICK
        name, activation = "swish", nn.Identity()
    return nn.Sequential(
        PackedLinear(weight, bias, name), activation, PackedLinear(last_weight, last.bias)
    )
