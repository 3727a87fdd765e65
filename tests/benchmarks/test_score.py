from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks.score import Ready, count_flops, kernel_seconds, print_limit
from scoring.clip.scorer import ClipScorer

TEXTS, TOKENS = 3, 16
IMAGES, PATCHES = 2, 16


def transformer(tokens: int, width: int, layers: int) -> int:
    """Returns the work of a transformer: four projections, a fourfold MLP, two attention products.

    A product of (a, b) and (b, c) is 2abc operations.
    """
    return layers * (2 * 12 * tokens * width**2 + 2 * 2 * tokens**2 * width)


def test_the_work_of_a_pair_is_that_of_all_products_those_of_attention_too(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    ready = Ready(
        images=[torch.zeros(IMAGES, 3, 32, 32)],
        trimmed_tokens=[torch.ones(TEXTS, TOKENS, dtype=torch.int64)],
        whole_tokens=[],
    )
    image = transformer(PATCHES + 1, width=32, layers=2) + 2 * PATCHES * 192 * 32 + 2 * 32 * 24
    text = transformer(TOKENS, width=16, layers=2) + 2 * 16 * 24
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_flops(scorer, ready) == IMAGES * image + TEXTS * text
    assert torch.backends.mha.get_fastpath_enabled()


def test_copies_and_the_work_of_the_processor_are_no_time_of_kernels() -> None:
    events = [
        SimpleNamespace(name=name, device_type=device, device_time_total=micros)
        for name, device, micros in [
            ("Memcpy HtoD (Pinned -> Device)", DeviceType.CUDA, 500_000),
            ("Memset (Device)", DeviceType.CUDA, 100_000),
            ("sm90_xmma_gemm_bf16", DeviceType.CUDA, 250_000),
            ("aten::mm", DeviceType.CPU, 1_000_000),
        ]
    ]
    assert kernel_seconds(events) == 0.25


@pytest.mark.parametrize(
    ("forward", "decoding", "said"),
    [
        (100.0, 400.0, "the model: 0.900 of its 100.0"),
        (400.0, 100.0, "decoding: 0.900 of its 100.0"),
    ],
)
def test_the_slower_side_is_named_with_the_rates_of_both(
    capsys: pytest.CaptureFixture[str], forward: float, decoding: float, said: str
) -> None:
    print_limit(90.0, forward, decoding)
    shown = capsys.readouterr().out
    assert said in shown
    assert f"forward {forward}, decoding {decoding}, end to end 90.0" in shown
