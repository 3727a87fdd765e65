import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from scoring.clip.scorer import ClipScorer
from scoring.config import ScoreConfig

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}

ARCHITECTURES: dict[str, tuple[dict[str, Any], bool]] = {
    "openai": ({"vision_cfg": VISION, "text_cfg": TEXT}, True),
    "custom_text": ({"custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT}, True),
    "eos_pooled": (
        {
            "custom_text": True,
            "vision_cfg": VISION,
            "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407},
        },
        True,
    ),
    "siglip": (
        {
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": VISION,
            "text_cfg": {
                **TEXT,
                "no_causal_mask": True,
                "pool_type": "last",
                "proj_bias": True,
            },
        },
        False,
    ),
    "class_token": (
        {
            "custom_text": True,
            "vision_cfg": VISION,
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": False},
        },
        False,
    ),
    "coca": (
        {
            "custom_text": True,
            "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {
                "context_length": 24,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        },
        False,
    ),
    "resnet": (
        {
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
            "text_cfg": TEXT,
        },
        True,
    ),
}

CAPTIONS = ["a cat", "", "word " * 60, "a red fire truck", "dog", "the old house by the water"]


def write_model(folder: Path, architecture: dict[str, Any]) -> str:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    kinds: dict[bool, Any] = {True: open_clip.CustomTextCLIP, False: open_clip.CLIP}
    kind = kinds[architecture.get("custom_text", False)]
    if "multimodal_cfg" in architecture:
        kind = open_clip.CoCa
    torch.manual_seed(0)
    values = {name: value for name, value in architecture.items() if name != "custom_text"}
    model = kind(**values)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.save(model.state_dict(), folder / "open_clip_model.pth")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_model_scores_as_open_clip_and_is_trimmed_only_where_it_is_safe(
    name: str, tmp_path: Path
) -> None:
    architecture, can_trim = ARCHITECTURES[name]
    model = write_model(tmp_path, {"embed_dim": 24, **architecture})
    scorer = ClipScorer(
        ScoreConfig(model=model, device="cpu", threads=1, batch_size=2, precision="fp32")
    )
    assert scorer.text_tower.can_trim is can_trim
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in CAPTIONS]
    scores = scorer.score(images, CAPTIONS)
    reference: Any = open_clip.create_model(model).eval()
    pixels = torch.from_numpy(np.stack(images))
    with torch.inference_mode():
        image = reference.encode_image(scorer.preprocessor.normalize(pixels), normalize=True)
        tokens = open_clip.get_tokenizer(model)(CAPTIONS)
        text = reference.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(scores.image_embedding, image.numpy(), atol=2e-6)
    np.testing.assert_allclose(scores.text_embedding, text.numpy(), atol=2e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_model_runs_in_low_precision(
    name: str, precision: Any, tmp_path: Path
) -> None:
    model = write_model(tmp_path, {"embed_dim": 24, **ARCHITECTURES[name][0]})
    embeddings = []
    for arithmetic in ("fp32", precision):
        config = ScoreConfig(model=model, device="cpu", threads=1, precision=arithmetic)
        scorer = ClipScorer(config)
        images = [np.full((32, 32, 3), 9 * row, np.uint8) for row in range(len(CAPTIONS))]
        scores = scorer.score(images, CAPTIONS)
        embeddings.append((scores.image_embedding, scores.text_embedding))
    for exact, near in zip(*embeddings, strict=True):
        assert ((exact * near).sum(-1) > 0.98).all()
