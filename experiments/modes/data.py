"""The pairs of the experiment with modes: real ones, some captions exchanged, curated."""

import csv
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
CORPUS = EXAMPLES / "corpus"
TOWER_PIXELS = 128
"""Side of the vision tower's input: 16 patches instead of 49, so that a CPU sees more pairs."""
PICTURE_PIXELS = 224
HELD_OUT_DRAWINGS = 0.06
"""Share of the drawings that no model sees in training."""
NEAR_COSINE = 0.95
"""A held-out picture as close as this to one of training, by the CLIP, is no test of anything."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A pair before curation."""

    file: str
    caption: str
    source: str
    is_held_out: bool


def prepare(work: Path, share_shuffled: float, limit: int = 0) -> None:
    """Assembles the models and curates all data into `work`, where that is not yet done.

    Args:
        share_shuffled: share of the training pairs whose captions are passed round.
        limit: most stamps, drawings and instructions each that are taken, and then the language
            model has two layers alone, to see whether all runs; 0 takes all.
    """
    if (work / "prepared.json").exists():
        made = json.loads((work / "prepared.json").read_text())
        if made["shuffled"] != share_shuffled:
            sys.exit(f"{work} has {made['shuffled']} shuffled captions: choose another --work")
        return
    models = work / "models"
    run(sys.executable, EXAMPLES / "assemble_models.py", "--out", models)
    make_small_tower(models / "vision_tower", models / "small_tower")
    make_language_model(models / "smollm2", models / "language_model", 2 if limit else 0)
    entries = [*stamps(work / "pictures", limit), *drawings(work / "pictures", limit)]
    training = [entry for entry in entries if not entry.is_held_out]
    wrong = write_pairs(work / "train.tsv", training, share_shuffled)
    held_out = [entry for entry in entries if entry.is_held_out]
    write_pairs(work / "validation.tsv", held_out, 0.0)
    curate = (Path(sys.executable).parent / "aligngpt-curate", "curate")
    score = ("--score.model", f"local-dir:{models / 'demo_clip'}")
    folder = ("--read.image-folder", work / "pictures")
    for name, more in (("train", ()), ("validation", ("--levels.edges-from", work / "train"))):
        pairs = ("--pairs", work / f"{name}.tsv", "--out", work / name)
        run(*curate, "--recipe", "demo", *pairs, *score, *folder, *more)
    for name in ("instructions", "instructions_validation"):
        samples = json.loads((EXAMPLES / "instructions" / f"{name}.json").read_text())
        (work / f"{name}.json").write_text(json.dumps(samples[: limit or None]))
        pairs = ("--pairs", work / f"{name}.json", "--out", work / name)
        images = ("--read.image-folder", EXAMPLES)
        run(*curate, "--recipe", "llava_instructions", *pairs, *images)
    made = {"shuffled": share_shuffled, "limit": limit, "wrong": sorted(wrong)}
    (work / "prepared.json").write_text(json.dumps(made) + "\n")


def run(*command: object) -> None:
    """Runs a command; where it fails, ends with what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def make_small_tower(tower: Path, out: Path) -> None:
    """Writes the tower again with the smaller input; its weights are the same."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((tower / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, TOWER_PIXELS, TOWER_PIXELS]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = out / "model.safetensors"
    if not weights.exists():
        weights.symlink_to((tower / "model.safetensors").resolve())


def make_language_model(smollm2: Path, out: Path, layers: int) -> None:
    """Writes SmolLM2 again, of its first layers alone if not 0.

    The demo's tokenizer starts every text with BOS. Without, a patch of the picture would stand
    first in mode `none` and the alignment vector in the others, and what stands first gets
    attention from everywhere: the modes would differ by that already.
    """
    shutil.copytree(smollm2, out, dirs_exist_ok=True)
    if layers:
        model = AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=layers)
        model.save_pretrained(out)


def stamps(pictures: Path, limit: int) -> list[Entry]:
    """Returns the bundled corpus, its pictures copied to the folder of all."""
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    if limit:
        rows = random.Random(0).sample(rows, limit)
    for row in rows:
        save(pictures / "stamp" / row["file"], partial(opened, CORPUS / row["file"]))
    return [
        Entry(f"stamp/{row['file']}", row["caption"], "stamp", row["split"] == "validation")
        for row in rows
    ]


def drawings(pictures: Path, limit: int) -> list[Entry]:
    """Returns the pairs that the demonstration CLIP's heads were trained on, drawn to the folder.

    The hash of a picture's name decides whether it is held out.
    """
    sys.path.insert(0, str(EXAMPLES / "demo_clip"))
    from pairs import training_pairs

    entries = []
    pairs = training_pairs()
    if limit:
        pairs = random.Random(0).sample(pairs, limit)
    for pair in pairs:
        file = f"{Path(pair.name).with_suffix('')}.png"
        save(pictures / file, pair.picture)
        digest = hashlib.blake2b(pair.name.encode(), digest_size=8).digest()
        is_held_out = int.from_bytes(digest, "big") / 2.0**64 < HELD_OUT_DRAWINGS
        entries.append(Entry(file, pair.texts[0], file.split("/")[0], is_held_out))
    return entries


def save(path: Path, picture: Callable[[], Image.Image]) -> None:
    """Writes a picture, no larger than needed, unless it stands there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture()
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    image.save(path)


def opened(path: Path) -> Image.Image:
    """Returns a picture in RGB, its transparent parts white."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def write_pairs(path: Path, entries: list[Entry], share_shuffled: float) -> set[str]:
    """Writes a table of url and caption; returns the files that got another's caption.

    In each source, the chosen pictures pass their captions round in a circle of random order:
    every caption is still used once, and its style does not give a wrong pair away.
    """
    captions = {entry.file: entry.caption for entry in entries}
    wrong: set[str] = set()
    chance = random.Random(0)
    for source in sorted({entry.source for entry in entries}):
        files = [entry.file for entry in entries if entry.source == source]
        chosen = chance.sample(files, round(share_shuffled * len(files)))
        given = [captions[file] for file in chosen]
        for file, caption in zip(chosen, [*given[1:], *given[:1]], strict=True):
            if caption.lower() != captions[file].lower():
                wrong.add(file)
            captions[file] = caption
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, "excel-tab", lineterminator="\n")
        table.writerow(["url", "caption"])
        table.writerows(captions.items())
    return wrong


def wrong_by_level(work: Path) -> list[tuple[int, int]]:
    """Returns of each level, the worst first, how many pairs were made wrong, and how many are."""
    pictures = f"{work.resolve() / 'pictures'}/"
    wrong = set(json.loads((work / "prepared.json").read_text())["wrong"])
    counts: dict[int, tuple[int, int]] = {}
    for path in sorted((work / "train" / "train").glob("*.parquet")):
        table = pq.read_table(path, columns=["url", "alignment_level"]).to_pydict()
        for url, level in zip(table["url"], table["alignment_level"], strict=True):
            found, total = counts.get(level, (0, 0))
            counts[level] = (found + (url.removeprefix(pictures) in wrong), total + 1)
    return [counts[level] for level in sorted(counts)]


def far_from_training(work: Path) -> set[str]:
    """Returns the keys of the held-out pairs that have no near-duplicate in training."""
    embeddings = {}
    for name in ("train", "validation"):
        tables = [
            pq.read_table(path, columns=["key", "image_embedding"])
            for path in sorted((work / name / "scored").glob("*.parquet"))
        ]
        keys = [key for table in tables for key in table.column("key").to_pylist()]
        vectors = np.concatenate(
            [np.stack(table.column("image_embedding").to_numpy()) for table in tables]
        ).astype(np.float32)
        embeddings[name] = keys, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    keys, vectors = embeddings["validation"]
    nearest = (vectors @ embeddings["train"][1].T).max(axis=1)
    return {key for key, cosine in zip(keys, nearest, strict=True) if cosine < NEAR_COSINE}
