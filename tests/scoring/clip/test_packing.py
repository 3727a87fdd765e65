import platform
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import CustomResidualAttentionBlock, QuickGELU, ResidualAttentionBlock
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import nn

from schemas.arithmetic import LIMITS
from scoring.clip import packing
from scoring.clip.checkpoints import deciding_identity
from scoring.clip.packing import PackedBlock, can_pack, lays_out_bf16, pack_linears
from scoring.clip.scorer import ClipScorer

WIDTH, HEADS, TOKENS = 32, 4, 7
HERE = pytest.mark.skipif(not can_pack(torch.float32), reason="not a processor it was measured on")


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def block_of(activation: type[nn.Module] = nn.GELU, **settings: Any) -> ResidualAttentionBlock:
    block = ResidualAttentionBlock(WIDTH, HEADS, act_layer=activation, **settings)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval().requires_grad_(False)


@HERE
@pytest.mark.parametrize("masks", [0, 1, 3 * HEADS])
@pytest.mark.parametrize("activation", [nn.GELU, QuickGELU, nn.ReLU])
def test_a_packed_block_gives_what_the_block_gives(activation: type[nn.Module], masks: int) -> None:
    tower = nn.Sequential(block_of(activation, ls_init_value=0.5))
    x = torch.randn(3, TOKENS, WIDTH)
    causal = torch.full((TOKENS, TOKENS), float("-inf")).triu_(1)
    each = torch.randn(masks, TOKENS, TOKENS)
    mask = (None, causal, each + causal)[min(masks, 2)]
    with torch.inference_mode():
        expected = tower[0](x, attn_mask=mask)
        assert pack_linears(tower) == 4
        found = tower[0](x, attn_mask=mask)
    assert isinstance(tower[0], PackedBlock)
    assert tower[0].get_weight_dtype() == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@HERE
def test_timms_modules_give_what_they_gave_with_packed_layers() -> None:
    attention = Attention(WIDTH, HEADS, qkv_bias=True)
    mlp = Mlp(WIDTH, 4 * WIDTH, norm_layer=nn.LayerNorm)
    tower = nn.Sequential(attention, mlp, Mlp(WIDTH, 8, bias=False), Mlp(WIDTH, 8, use_conv=True))
    tower = tower.eval().requires_grad_(False)
    x = torch.randn(3, TOKENS, WIDTH)
    with torch.inference_mode():
        expected = tower[:3](x)
        assert pack_linears(tower) == 4
        found = tower[:3](x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@HERE
@pytest.mark.parametrize(
    "made",
    [
        lambda: block_of(is_cross_attention=True),
        lambda: block_of(batch_first=False),
        lambda: block_of().double(),
        lambda: CustomResidualAttentionBlock(WIDTH, HEADS),
        lambda: type("Derived", (ResidualAttentionBlock,), {})(WIDTH, HEADS),
    ],
)
def test_what_is_not_known_to_the_last_step_stays_as_it_is(
    made: Callable[[], nn.Module],
) -> None:
    block = made()
    tower = nn.Sequential(block)
    assert pack_linears(tower) == 0
    assert tower[0] is block


def test_only_processors_that_were_measured_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not can_pack(torch.float32)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not can_pack(torch.bfloat16)


def test_nothing_is_packed_in_bf16_where_onednn_does_not_lay_it_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own question, since the processor's flags may promise more: a dataset moved, or a VM."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2 avx512f avx512_bf16\n")
    monkeypatch.setattr("schemas.arithmetic.CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(packing, "lays_out_bf16", lambda: False)
    assert not can_pack(torch.bfloat16)
    monkeypatch.setattr(packing, "lays_out_bf16", lambda: True)
    assert can_pack(torch.bfloat16)


@HERE
def test_what_onednn_says_it_lays_out_it_does() -> None:
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    with nullcontext() if lays_out_bf16() else pytest.raises(RuntimeError):
        torch.ops.mkldnn._reorder_linear_weight(weight, 8)


@HERE
def test_scores_say_how_many_layers_are_packed_and_do_not_hang_on_it(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    assert scorer.identity["packed_linears"] == "16"
    assert "packed_linears" not in deciding_identity(scorer.identity)
