"""The card of a publication: what it is, how it opens, what made it, what was asked of us."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from PIL import Image, ImageDraw, ImageFont

from pipeline.publish.samples import TRAIN, VALIDATION, Counts
from pipeline.publish.shards import Published
from schemas.errors import RejectReason
from schemas.manifest import Manifest

Form = Literal["webdataset", "parquet"]
ENDINGS: dict[Form, str] = {"webdataset": "tar", "parquet": "parquet"}
LEVELS_PICTURE = "levels.png"

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
MORE_SIZES = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
"""Upper end to the Hub's name of a size."""

OPT_OUTS = (
    ("robots.txt", "respects_robots", RejectReason.ROBOTS_DISALLOWED),
    ("X-Robots-Tag", "respects_robots_tag", RejectReason.OPTED_OUT_BY_HEADER),
    ("text-and-data-mining reservations", "respects_tdm", RejectReason.TDM_RESERVED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a person says of a publication."""

    name: str
    form: Form
    licence: str
    language: tuple[str, ...]


def card(
    about: About,
    manifest: Manifest,
    counts: Counts,
    files: Sequence[Published],
    features: list[dict[str, Any]],
) -> str:
    """Returns the README.md of a publication: YAML for the Hub, then words for people."""
    splits = [split for split in (TRAIN, VALIDATION) if counts.samples[split]]
    header = yaml.safe_dump(
        _header(about, counts, splits, files, features), sort_keys=False, allow_unicode=True
    )
    parts = [
        f"---\n{header}---\n\n# {about.name}\n",
        _summary(manifest, counts, splits),
        _levels(manifest, counts),
        _opening(about, splits),
        _making(manifest),
        _opt_outs(manifest),
        CITATION,
    ]
    return "\n".join(part for part in parts if part)


def _header(
    about: About,
    counts: Counts,
    splits: list[str],
    files: Sequence[Published],
    features: list[dict[str, Any]],
) -> dict[str, Any]:
    ending = ENDINGS[about.form]
    total = sum(counts.samples.values())
    sizes = {
        split: sum(file.num_bytes for file in files if file.name.startswith(f"{split}/"))
        for split in splits
    }
    tasks = ["image-to-text", *(["visual-question-answering"] if counts.conversations else [])]
    return {
        "pretty_name": about.name,
        "license": about.licence,
        "language": list(about.language),
        "task_categories": tasks,
        "size_categories": [
            next((name for limit, name in (*SIZES, *MORE_SIZES) if total < limit), "n>1B")
        ],
        "tags": ["image-text", "alignment-levels", about.form, "aligngpt"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/*.{ending}"} for split in splits],
            }
        ],
        "dataset_info": {
            "config_name": "default",
            "features": features,
            "splits": [
                {
                    "name": split,
                    "num_bytes": sizes[split],
                    "num_examples": counts.samples[split],
                }
                for split in splits
            ],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
    }


def _summary(manifest: Manifest, counts: Counts, splits: list[str]) -> str:
    total = sum(counts.samples.values())
    told = ", ".join(f"{counts.samples[split]:,} in `{split}`" for split in splits)
    scored = f", scored by {manifest.model.get('model', 'CLIP')}" if manifest.model else ""
    return (
        f"{total:,} image-text samples ({told}) with {counts.images:,} images, "
        f"{counts.image_bytes:,} bytes of them; {counts.conversations:,} samples are "
        f"conversations. Curated by aligngpt {manifest.aligngpt_version}{scored}.\n\n"
        "A sample's split follows from a hash of its image's address, so that no picture is in "
        "both.\n"
    )


def _levels(manifest: Manifest, counts: Counts) -> str:
    if not counts.levels:
        return ""
    warnings = "".join(f"\n> {warning}\n" for warning in manifest.handed_on_warnings)
    rows = "".join(
        f"| {level} | {int(count):,} | {low:.4f} | {high:.4f} |\n"
        for level, (count, low, high) in sorted(counts.levels.items())
    )
    picture = f"![Samples and scores of each level]({LEVELS_PICTURE})"
    return (
        "## Alignment levels\n\n`alignment_level` ranks the samples by how well image and text "
        f"belong together, 1 the worst.\n{warnings}\n{picture}\n\n"
        f"| level | samples | lowest score | highest score |\n|---|---|---|---|\n{rows}"
    )


def _opening(about: About, splits: list[str]) -> str:
    first = splits[0]
    lines = ['datasets.load_dataset("FOLDER OR HUB NAME", streaming=True)']
    if about.form == "webdataset":
        lines += [
            f'webdataset.WebDataset(sorted(glob.glob("{first}/*.tar")), shardshuffle=False)',
            f'wids.ShardListDataset("{first}/index.json")',
        ]
        more = (
            "Members of a sample: `KEY.jpg` (`KEY.1.jpg`, … for further images), `KEY.txt`, "
            "`KEY.json`. `.nv-meta/` and the `.idx` files are for Megatron-Energon.\n"
        )
    else:
        lines += [
            f"duckdb.sql(\"SELECT caption, image.bytes FROM '{first}/*.parquet'\")",
            f'pandas.read_parquet("{first}")',
            f'polars.read_parquet("{first}/*.parquet")',
        ]
        more = "`image.bytes` and `other_images` hold encoded images.\n"
    code = "\n".join(lines)
    return (
        f"## Open it\n\n```python\n{code}\n```\n\n{more}`checksums.sha256` has every file's hash: "
        "`sha256sum -c checksums.sha256`.\n"
    )


def _making(manifest: Manifest) -> str:
    rows = "".join(
        f"| {stage} | {counts.rows_in:,} | {counts.kept:,} | "
        f"{', '.join(f'{reason} {n:,}' for reason, n in counts.rejected.items()) or 'none'} |\n"
        for stage, counts in manifest.stages.items()
    )
    packages = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    return (
        "## How it was made\n\n| stage | rows in | kept | left out |\n|---|---|---|---|\n"
        f"{rows}\nBy {packages}.\n"
    )


def _opt_outs(manifest: Manifest) -> str:
    configs = [parent.config for parent in manifest.parents] or [manifest.config]
    rows = "".join(
        f"| {rule} | {'yes' if all(config['fetch'][name] for config in configs) else 'no'} | "
        f"{manifest.rejected.get(reason.value, 0):,} |\n"
        for rule, name, reason in OPT_OUTS
    )
    return (
        "## Opt-outs\n\nWhether each was followed when the images were fetched, and how many were "
        f"left out for it.\n\n| opt-out | followed | images |\n|---|---|---|\n{rows}"
    )


CITATION = """## How to cite

```bibtex
@article{zhao2024aligngpt,
  title = {AlignGPT: Multi-modal Large Language Models with Adaptive Alignment Capability},
  author = {Zhao, Fei and Pang, Taotian and Li, Chunhui and Wu, Zhen and Guo, Junjie and
            Xing, Shangyu and Dai, Xinyu},
  journal = {arXiv preprint arXiv:2405.14129},
  year = {2024}
}
```
"""


def levels_picture(counts: Counts) -> bytes:
    """Returns a PNG of the levels: a bar for the scores of each, from its lowest to its highest."""
    width, row, left, right, top = 920, 34, 110, 270, 46
    levels = sorted(counts.levels.items())
    lowest = min(low for _, (_, low, _) in levels)
    span = max(high for _, (_, _, high) in levels) - lowest or 1.0
    image = Image.new("RGB", (width, top + row * len(levels) + 14), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    draw.text((left, 14), "score of image and text, by alignment level", "#66727f", font)
    scale = (width - left - right) / span
    for place, (level, (count, low, high)) in enumerate(levels):
        y = top + place * row
        begin, end = left + (low - lowest) * scale, left + (high - lowest) * scale
        told = f"{low:.3f} to {high:.3f}, {int(count):,} samples"
        draw.rectangle((begin, y, max(end, begin + 2), y + 22), "#2f7d6b")
        draw.text((16, y + 2), f"level {level}", "#1d2733", font)
        draw.text((end + 10, y + 4), told, "#66727f", small)
    output = io.BytesIO()
    image.save(output, "PNG", optimize=True)
    return output.getvalue()
