"""A tiny tokenizer, tiny models and small datasets on disk, real but quick."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schemas.columns import table_from_records, write_table
from schemas.manifest import Manifest, ShardEntry
from schemas.records import TRAIN_SCHEMA, TrainSample, pair_key
from schemas.shards import DatasetLayout, image_member

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
THINGS = ("cat", "dog", "house", "tree", "boat", "star", "fish", "car", "bird", "cup")
WORDS = ["a photo of a", "what is this?", "it is", "the picture shows", "user", "assistant"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Returns a byte-level BPE tokenizer trained on a few words, with a ChatML template."""
    return build_tokenizer()


def build_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*WORDS, *COLOURS, *THINGS] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "</s>"],
        chat_template=CHATML,
    )


def picture(colour: str, size: int = 32) -> bytes:
    """Returns a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def caption_samples(count: int) -> list[dict[str, Any]]:
    """Returns pairs whose caption names the picture's colour."""
    samples = []
    for i in range(count):
        colour, thing = COLOURS[i % len(COLOURS)], THINGS[i // len(COLOURS) % len(THINGS)]
        words = "a photo of a " * (1 + i % 3)
        samples.append(
            {
                "url": f"http://example.org/{i}.png",
                "caption": f"{words}{colour} {thing}",
                "image": picture(colour),
                "level": 1 + i % 4,
            }
        )
    return samples


def conversation_samples(count: int, text_only_every: int = 3) -> list[dict[str, Any]]:
    """Returns conversations, some of them about no picture, some about two."""
    samples = []
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        has_image = i % text_only_every != 0
        question = "<image>\nwhat is this?" if has_image else f"say {colour}"
        others = [picture(COLOURS[(i + 1) % len(COLOURS)])] if has_image and i % 5 == 4 else []
        if others:
            question = "<image>\n<image>\nwhat is the first?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"it is {colour}"}]
        if i % 4 == 0:
            turns += [{"from": "human", "value": "again"}, {"from": "gpt", "value": colour}]
        samples.append(
            {
                "url": f"{i}.png" if has_image else None,
                "caption": question,
                "conversations": json.dumps(turns),
                "image": picture(colour) if has_image else None,
                "more_images": others,
                "level": None,
            }
        )
    return samples


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., str]:
    """Returns a function that writes samples as a curated dataset and returns its folder."""
    return write_dataset


def write_dataset(
    folder: Path, samples: Sequence[dict[str, Any]], samples_per_shard: int = 16
) -> str:
    layout = DatasetLayout(str(folder))
    Path(layout.train(0, "tar")).parent.mkdir(parents=True)
    entries = []
    for shard, start in enumerate(range(0, len(samples), samples_per_shard)):
        entries.append(write_shard(layout, shard, samples[start : start + samples_per_shard]))
    manifest = Manifest(
        aligngpt_version="0",
        config={},
        versions={},
        model=None,
        rows_in=len(samples),
        kept=len(samples),
        rejected={},
        stages={},
        num_levels=4,
        level_edges=None,
        samples_per_shard=samples_per_shard,
        shards=entries,
    )
    Path(layout.manifest).write_text(manifest.to_json())
    return str(folder)


def write_shard(layout: DatasetLayout, shard: int, samples: Sequence[dict[str, Any]]) -> ShardEntry:
    records = []
    tar_path, table_path = Path(layout.train(shard, "tar")), layout.train(shard, "parquet")
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            records.append(add_sample(tar, sample))
    write_table(table_from_records(records, TRAIN_SCHEMA), table_path)
    return ShardEntry(
        name=f"{shard:06d}",
        samples=len(samples),
        tar_bytes=tar_path.stat().st_size,
        tar_sha256=hashlib.sha256(tar_path.read_bytes()).hexdigest(),
        parquet_bytes=Path(table_path).stat().st_size,
        parquet_sha256=hashlib.sha256(Path(table_path).read_bytes()).hexdigest(),
    )


def add_sample(tar: tarfile.TarFile, sample: dict[str, Any]) -> TrainSample:
    text = sample.get("conversations") or sample["caption"]
    key = pair_key(sample["url"] or "", text)
    images = [sample["image"], *sample.get("more_images", ())] if sample["image"] else []
    offsets = []
    for number, image in enumerate(images):
        member = tarfile.TarInfo(image_member(key, "png", number))
        member.size = len(image)
        offsets.append(tar.offset + 512)
        tar.addfile(member, io.BytesIO(image))
    return TrainSample(
        key=key,
        url=sample["url"],
        caption=sample["caption"],
        conversations=sample.get("conversations"),
        sample_id=sample.get("sample_id"),
        source="test",
        expected_hash=None,
        image_format="png" if images else None,
        width=32 if images else None,
        height=32 if images else None,
        original_width=None,
        original_height=None,
        sha256=None,
        pixel_hash=None,
        clip_score=None,
        alignment_level=sample["level"],
        image_offset=offsets[0] if images else None,
        image_bytes=len(images[0]) if images else None,
        more_image_offsets=offsets[1:] or None,
        more_image_bytes=[len(image) for image in images[1:]] or None,
    )


@pytest.fixture(scope="session")
def caption_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a dataset of 48 pairs in four levels."""
    return write_dataset(tmp_path_factory.mktemp("pairs") / "data", caption_samples(48))


@pytest.fixture(scope="session")
def conversation_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a dataset of 48 conversations, a third of them about no picture."""
    return write_dataset(tmp_path_factory.mktemp("turns") / "data", conversation_samples(48))


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, str]:
    """Returns the folders of a random Llama and a random CLIP tower (16 patches), by flag."""
    return write_parts(tmp_path_factory.mktemp("parts"), tiny_tokenizer)


def write_parts(root: Path, tokenizer: Any, **settings: Any) -> dict[str, str]:
    """Writes the parts of a tiny model; settings are of its Llama."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    LlamaForCausalLM(llama).save_pretrained(root / "language_model")
    tokenizer.save_pretrained(root / "language_model")
    clip = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(clip).save_pretrained(root / "vision_tower")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(root / "vision_tower")
    return {
        "language_model": str(root / "language_model"),
        "vision_tower": str(root / "vision_tower"),
    }


@pytest.fixture(scope="session")
def other_conversation_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a dataset of 16 more conversations, each about a picture."""
    samples = conversation_samples(64, text_only_every=100)[48:]
    return write_dataset(tmp_path_factory.mktemp("more_turns") / "data", samples)


@pytest.fixture(scope="session")
def parts() -> Any:
    """Returns a tiny model with 256 places and its processor."""
    from tests.training.model.tiny_models import (
        IMAGE_SIZE,
        build_model,
        build_tokenizer,
        text_config,
    )
    from training.model.image_processor import AlignGPTImageProcessor
    from training.model.processor import AlignGPTProcessor
    from training.parts import Assembled

    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(image_size=IMAGE_SIZE),
        tokenizer=build_tokenizer(False),
        num_image_tokens=16,
    )
    places = processor.placeholders
    model = build_model(
        text_config=text_config(vocab_size=300),
        image_token_id=places.image_token_id,
        align_token_id=places.align_token_id,
        leading_bos_token_id=places.bos_token_id,
    )
    return Assembled(model=model, processor=processor)
