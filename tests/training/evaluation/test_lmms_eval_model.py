"""lmms-eval runs the model: found by its entry point, with the answers of our own evaluation."""

import importlib
import json
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


TASK = """\
task: local_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function local_colours.picture_of
doc_to_text: "What colour is this?"
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 3
process_results: !function local_colours.results_of
metric_list:
  - metric: answered
    aggregation: mean
    higher_is_better: true
"""

TASK_CODE = """\
from PIL import Image


def picture_of(doc):
    return [Image.new("RGB", (40, 32), doc["colour"])]


def results_of(doc, results):
    return {"answered": float(results[0] == doc["answer"])}
"""


@pytest.mark.filterwarnings("ignore")  # of lmms-eval and what it loads
def test_simple_evaluate_scores_a_local_task(model_folder: str, tmp_path: Path) -> None:
    evaluator = pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is an extra")
    tasks: Any = importlib.import_module("lmms_eval.tasks")
    module: Any = importlib.import_module("training.evaluation.lmms_eval_model")
    model = module.AlignGPT(pretrained=model_folder, batch_size=2, precision="fp32")
    colours = ("red", "green", "blue")
    expected = []
    for colour in colours:
        picture = module.Shown(Image.new("RGB", (40, 32), colour))
        asked = [module.Request(number=0, prompt="What colour is this?", picture=picture)]
        decoding = module.Decoding(max_new_tokens=3, image_mode="pad", batch_size=1)
        ((_, replies),) = module.answer_batches(model._answerer, [(0, asked)], decoding)
        expected.append(replies[0].text.strip())
    rows = [{"colour": c, "answer": a} for c, a in zip(colours, expected, strict=True)]
    rows[-1]["answer"] += " not this"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local_colours.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "local_colours.py").write_text(TASK_CODE)
    found = evaluator.simple_evaluate(
        model=model,
        tasks=["local_colours"],
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    assert found["results"]["local_colours"]["answered,none"] == pytest.approx(2 / 3)
