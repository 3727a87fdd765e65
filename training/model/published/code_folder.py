"""A model folder that brings its code: `transformers` opens it where ours is not installed.

The modules of the model are copied side by side, their imports of each other made relative, and the
config files say which of them has which class. Nothing of it runs unless the user passes
`trust_remote_code=True`.
"""

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.versions import program_version
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import is_timm_tower
from training.model.processor import AlignGPTProcessor

START = "training.model.auto"
OURS = ("training", "schemas")
PREFIX = "aligngpt_"
CLASSES = {
    "config.json": {
        "AutoConfig": ("training.model.config", "AlignGPTConfig"),
        "AutoModelForImageTextToText": (
            "training.model.aligngpt",
            "AlignGPTForConditionalGeneration",
        ),
    },
    "processor_config.json": {
        "AutoProcessor": ("training.model.processor", "AlignGPTProcessor"),
        "AutoImageProcessor": ("training.model.image_processor", "AlignGPTImageProcessor"),
    },
}
NOT_ALWAYS = ("timm", "sentencepiece")
"""Packages that most models do without: a folder asks for them only where it needs them."""


def save_with_code(
    model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, folder: Path
) -> None:
    """Writes model, processor and the code of both."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    needs = {"timm"} if is_timm_tower(model.config.vision_config) else set()
    for name, source in sorted(code_of(START).items()):
        (folder / file_name(name)).write_text(standing_alone(source, needs), encoding="utf-8")
    for file, classes in CLASSES.items():
        path = folder / file
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings["auto_map"] = {
            auto: f"{Path(file_name(module)).stem}.{name}"
            for auto, (module, name) in classes.items()
        }
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def code_of(start: str) -> dict[str, str]:
    """Returns the source of a module of ours and of all of ours that it needs, by dotted name."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _source(name)
            waiting += _imported(found[name])
    return found


def _source(name: str) -> str:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, name
    return Path(spec.origin).read_text(encoding="utf-8")


def _imported(source: str) -> list[str]:
    """Returns the modules of ours that a source imports names from."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    modules = (node.module for node in nodes if node.module)
    return [module for module in modules if module.split(".")[0] in OURS]


def file_name(module: str) -> str:
    """Returns the file that a module of ours has in the folder."""
    inner = module.removeprefix("training.model.").replace(".", "_")
    return f"{PREFIX}{'model' if inner == 'aligngpt' else inner}.py"


def standing_alone(source: str, needs: set[str]) -> str:
    """Returns a source that imports ours from beside it.

    Args:
        needs: packages of NOT_ALWAYS that this model cannot do without.
    """

    def beside(found: re.Match[str]) -> str:
        return f"from .{Path(file_name(found[1])).stem} import"

    ours = "|".join(OURS)
    moved = re.sub(rf"^from ((?:{ours})\.[\w.]+) import", beside, source, flags=re.MULTILINE)
    for package in NOT_ALWAYS:
        if package not in needs:
            moved = re.sub(
                rf"^( *)((?:import|from) {package}\b.*)$",
                r"\1try:\n\1    \2\n\1except ImportError:  # not needed by this model\n\1    pass",
                moved,
                flags=re.MULTILINE,
            )
    return f"# Of aligngpt {program_version()}, Apache-2.0; written by its export.\n{moved}"
