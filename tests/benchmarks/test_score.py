from typing import Any

import torch

from benchmarks.score import Ready, count_flops
from scoring.clip import ClipScorer

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
