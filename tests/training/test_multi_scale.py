import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipVisionConfig, SiglipVisionModel

from training.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.parts import from_folder, from_parts, load_folder
from training.train import train


def config_of(parts: dict[str, str], **settings: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(**parts, num_levels=4, **settings),
        data=DataConfig(tokens_per_sequence=128, sequences_per_step=2, workers=0),
        parallel=ParallelConfig(precision="fp32", activation_checkpointing=False),
        max_steps=1,
    )


def save_siglip(tower: Path) -> None:
    siglip = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    SiglipVisionModel(siglip).save_pretrained(tower)
    CLIPImageProcessor().save_pretrained(tower)


def test_stage_1_squashes_pictures_for_siglip_and_crops_them_for_others(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    save_siglip(tmp_path / "siglip")
    # Red at its left end, where a crop to a square does not reach.
    wide = Image.new("RGB", (48, 16), "white")
    wide.paste("red", (0, 0, 12, 16))
    is_seen = {}
    for tower in (tiny_parts["vision_tower"], str(tmp_path / "siglip")):
        parts = from_parts(config_of({**tiny_parts, "vision_tower": tower}))
        mode = parts.image_mode("caption")
        pixels = parts.processor.image_processor.pixels(wide, mode)
        is_seen[mode] = bool((pixels[0] - pixels[1]).max() > 1.0)
        assert parts.image_mode("conversation") == "pad"
    assert is_seen == {"crop": False, "squash": True}


def test_a_siglip_tower_at_two_scales_trains_and_is_saved_so(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    tower = tmp_path / "siglip"
    save_siglip(tower)
    parts = {**tiny_parts, "vision_tower": str(tower)}
    config = config_of(parts, image_scales=(16, 32), gate_reads_answer=True)
    assert train(config, [caption_dataset], str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]
    assert losses and all(torch.isfinite(torch.tensor(losses)))
    saved: Any = load_folder(str(tmp_path / "run" / "model"), torch.float32)
    assert saved.model.config.image_scales == [16, 32]
    assert saved.model.config.gate_reads_answer is True
    assert saved.processor.image_processor.image_size == 32
    assert saved.model.projector.layers[0].in_features == 2 * 16
    assert saved.size(config).vision_tokens_per_image == 16 * (1 + 4)


def test_the_class_token_is_kept_where_asked(tiny_parts: dict[str, str]) -> None:
    parts = from_parts(config_of(tiny_parts, vision_feature_select="cls_patch"))
    assert parts.model.config.num_image_tokens == 17
    assert parts.processor.placeholders.num_image_tokens == 17


def test_what_the_gate_reads_is_the_folders_unless_said(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(tiny_parts, gate_reads_answer=True)
    parts = from_parts(config)
    parts.model.save_pretrained(tmp_path)
    parts.processor.save_pretrained(tmp_path)
    for wanted, expected in ((None, True), (True, True), (False, False)):
        settings = replace(config, model=replace(config.model, gate_reads_answer=wanted))
        found = from_folder(str(tmp_path), settings).model.config.gate_reads_answer
        assert found is expected
