"""What the tests of several packages share, and the order in which they run."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Tests run beside each other, and more threads than cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read once, when torch is loaded: threads that spin steal the core from whom they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# As the commands do: where in memory its factors lie is in no product's last bits.
os.environ.setdefault("MKL_CBWR", "AUTO")

# torch.compile would start processes of its own, as many as there are cores, in every worker.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# Workers of a job are processes of their own, which unpickle functions of these tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from hypothesis import settings

from scoring.config import ScoreConfig
from tests.web_server import WebServer

# Libraries make a million objects that stay: nothing is gained by looking through them, neither
# while the tests are collected nor after it.
gc.disable()

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


LONGEST = (
    "pipeline/job/test_object_store.py",
    "pipeline/job/test_kills.py",
    "training/test_train.py",
    "training/test_kills.py",
    "examples/test_assemble_models.py",
    "pipeline/job/test_retry_job.py",
    "pipeline/job/test_disk.py",
    "pipeline/fetch/img2dataset/test_engine.py",
    "training/test_exits.py",
    "training/model/packing/test_attention.py",
    "test_docs.py",
    "pipeline/job/test_same_bytes.py",
    "pipeline/read/test_shard_input.py",
    "training/model/test_real_parts.py",
    "pipeline/test_curate.py",
    "pipeline/fetch/test_retry.py",
    "training/engine/test_launchers.py",
)
"""The files that take longer than half a minute on two cores, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, then those with slow tests: what begins last is waited for."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    slow: dict[Path, int] = {}
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        slow[item.path] = slow.get(item.path, 0) + is_slow
    items.sort(key=lambda item: (place.get(item.path, len(place)), -slow[item.path]))


def pytest_collection_finish() -> None:
    """Looks for garbage again, but not in what was made so far."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def torchs_linear_layer_stays() -> Iterator[None]:
    """Fails a test that leaves another linear layer to those after it: their bits would differ."""
    yield
    if "torch" in sys.modules:
        linear = sys.modules["torch"].nn.functional.linear
        assert linear.__module__ != "deepspeed.runtime.zero.linear", "ZeRO 3 replaced it"


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, in each of the ways in which a configuration can name it."""

    config_file: Path
    weights: Path
    folder: Path

    def score_config(self, **settings: Any) -> ScoreConfig:
        values: dict[str, Any] = {
            "model": str(self.config_file),
            "pretrained": str(self.weights),
            "device": "cpu",
            "threads": 1,
            "decode_threads": 2,
            "batch_size": 4,
            "precision": "fp32",
        }
        return ScoreConfig(**{**values, **settings})


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Returns the files of a CLIP with random weights: 24-wide embeddings, 16 tokens, 32 px."""
    import open_clip  # with torch it takes seconds to start, which many tests do not need
    import torch

    root = tmp_path_factory.mktemp("tiny_clip")
    config_file = root / "tiny-clip.json"
    config_file.write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    weights = root / "tiny-clip.pt"
    torch.save(model.state_dict(), weights)
    folder = root / "tiny-clip-folder"
    folder.mkdir()
    preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocessing})
    )
    torch.save(model.state_dict(), folder / "open_clip_model.pth")
    return ModelFiles(config_file, weights, folder)


@pytest.fixture(scope="session")
def running_web_server() -> Iterator[WebServer]:
    """Returns the web server that the tests of one run share."""
    server = WebServer().start()
    yield server
    server.stop()


@pytest.fixture
def web_server(running_web_server: WebServer) -> WebServer:
    """Returns a web server without routes."""
    running_web_server.forget()
    return running_web_server
