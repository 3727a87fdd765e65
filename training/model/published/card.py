"""The card of a model: what it is, what it learnt from and how, and how to open it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from schemas.errors import DatasetError
from schemas.manifest import Manifest
from schemas.versions import program_version
from training.model.config import AlignGPTConfig

UNKNOWN = "unknown"
RECIPE_FIELDS = ("train_parts", "max_steps", "epochs", "model", "data", "optimizer", "lora")
LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
```

`trust_remote_code` runs the files `aligngpt_*.py` of this folder: read them first.
"""
LLAVA_LOADING = """```python
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""


def write_card(
    folder: Path, model: Path, config: AlignGPTConfig, *, has_code: bool, evaluation: Path | None
) -> None:
    """Writes `README.md`, as the Hugging Face hub shows it.

    Args:
        model: the folder that the model came from; its run, if it is of one, lies around it.
        has_code: whether the folder brings code, or is LLaVA's.
        evaluation: folder that `aligngpt-train evaluate --out` wrote.
    """
    run = _json(model.parent / "config.json") if model.name == "model" else {}
    text = config.text_config
    base = str(getattr(text, "_name_or_path", "") or UNKNOWN)
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=UNKNOWN,
        base_model=None if base == UNKNOWN or Path(base).is_absolute() else base,
        tags=["aligngpt", f"alignment-{config.alignment_mode}"],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---\n",
        f"# {run_name(model)}\n",
        "A multimodal language model after [AlignGPT](https://arxiv.org/abs/2405.14129), made by "
        f"aligngpt {program_version()}.\n",
        _made_of(config, base),
        "## Open it\n\n" + (LOADING if has_code else LLAVA_LOADING),
        _data(run),
        _recipe(run),
        _results(model.parent if run else None, evaluation),
        "## Licence\n\nNot set. It follows from those of the language model, the vision tower and "
        "the data: name it here and in `license` above before you publish the folder.\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def run_name(model: Path) -> str:
    """Returns what a model is called: as its run, or as its folder."""
    place = model.resolve()
    return place.parent.name if place.name == "model" else place.name


def _made_of(config: AlignGPTConfig, base: str) -> str:
    rows = {
        "language model": f"{Path(base).name} ({config.text_config.model_type})",
        "vision tower": f"{config.vision_config.model_type}, {config.image_size} pixels",
        "vectors of a picture": config.num_image_tokens,
        "projector": config.projector_type,
        "alignment mode": config.alignment_mode,
        "alignment levels": config.num_levels if config.has_align_token else "none",
    }
    return "## What it is made of\n\n" + _table(rows)


def _data(run: dict[str, Any]) -> str:
    """Returns what the manifests of the run's datasets say."""
    title = "## What it learnt from\n\n"
    lines = []
    for place in run.get("data", []):
        path = Path(place) / "manifest.json"
        name = f"`{Path(place).name}`"
        if not path.is_file():
            lines.append(f"- {name}: its manifest is not at hand")
            continue
        try:
            found = Manifest.from_json(path.read_text(encoding="utf-8"))
        except DatasetError:
            lines.append(f"- {name}: its manifest is of another version of aligngpt")
            continue
        scorer = "" if found.model is None else f"; scored by {_words(found.model)}"
        levels = f"; {found.num_levels} levels" if found.num_levels else ""
        lines.append(
            f"- {name}: {found.kept:,} samples of {found.rows_in:,} rows, curated by aligngpt "
            f"{found.aligngpt_version}{levels}{scorer}"
        )
    return title + ("\n".join(lines) or "Not known: the model does not lie in its run.") + "\n"


def _recipe(run: dict[str, Any]) -> str:
    if not run:
        return "## How it was trained\n\nNot known: the model does not lie in its run.\n"
    chosen = {name: run["config"][name] for name in RECIPE_FIELDS if name in run["config"]}
    text = json.dumps(_without_paths(chosen), indent=2)
    return f"## How it was trained\n\n```json\n{text}\n```\n"


def _results(run: Path | None, evaluation: Path | None) -> str:
    parts = []
    validation = _last_validation(run) if run is not None else {}
    if validation:
        parts.append("On held-out samples of its training:\n\n" + _table(validation))
    if evaluation is not None:
        parts.append((evaluation / "results.md").read_text(encoding="utf-8"))
    return "## Results\n\n" + ("\n".join(parts) or "None measured.\n")


def _last_validation(run: Path) -> dict[str, Any]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if '"validation/' in line]
    return {} if not rows else {name: f"{value:.4g}" for name, value in rows[-1].items()}


def _without_paths(value: Any) -> Any:
    """Returns settings in which a path of this machine is its last name alone."""
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {_words(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _words(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found if "config" in found else {}
