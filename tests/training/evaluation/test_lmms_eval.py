"""lmms-eval runs the model: found by its entry point, with the answers of our own evaluation."""

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]


def test_the_entry_point_names_what_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["aligngpt"].partition(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert f"def {name}(" in path.read_text()


def test_a_local_task_is_answered(model_folder: str) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is an extra")
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    module: Any = importlib.import_module("training.evaluation.lmms_eval_model")
    registry = ModelRegistryV2()
    registry.register_manifest(module.manifest())
    model = registry.get_model_class("aligngpt")(
        pretrained=model_folder, batch_size="2", precision="fp32", device="cpu"
    )
    colours = ("red", "green", "blue")
    model.task_dict["local"] = {
        "test": [{"picture": Image.new("RGB", (20 + 9 * i, 32), c)} for i, c in enumerate(colours)]
    }

    def visual(doc: dict[str, Any]) -> list[Image.Image]:
        return [doc["picture"]]

    def requests(**settings: Any) -> list[Any]:
        return [
            Instance(
                request_type="generate_until",
                arguments=(f"what is it{'?' * i}", settings, visual, i, "local", "test"),
                idx=i,
                metadata={"task": "local", "doc_id": i, "repeats": 1},
            )
            for i in range(3)
        ]

    together = model.generate_until(requests(max_new_tokens=4))
    apart = [model.generate_until([one])[0] for one in requests(max_new_tokens=4)]
    assert together == apart and len(together) == 3
    with pytest.raises(Exception, match="greedy"):
        model.generate_until(requests(temperature=0.7))
    assert "lmms_eval" in sys.modules
