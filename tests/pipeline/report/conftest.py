"""A finished dataset that nothing is wrong with."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.datasets import finish, write_dataset


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A dataset of three train shards (15, 15 and 8 samples) that nothing is wrong with."""
    root = tmp_path_factory.mktemp("whole")
    write_dataset(root)
    manifest = finish(root)
    levels = [
        {
            "level": level["level"],
            "count": level["count"],
            "min_score": level["lowest_score"],
            "max_score": level["highest_score"],
        }
        for level in manifest.level_edges
    ]
    (root / "levelled" / "edges.json").write_text(json.dumps({"levels": levels, "drift": None}))
    return root


FUNCTIONS = """
import numpy as np

def brevity(pairs):
    return -np.array([len(caption) for caption in pairs.captions], np.float32)

def agreement(pairs):
    return 100 * pairs.clip_score + len(pairs.keys[0])

def bound(pairs):
    return pairs.clip_score

bound.has_control = False
"""


@pytest.fixture
def signals(tmp_path, monkeypatch):
    """Signals of every kind that needs no model, as a configuration names them."""
    (tmp_path / "control_signals.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    weight = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    save_file({"weight": weight}, str(tmp_path / "taste.safetensors"))
    named = [f"control_signals:{name}" for name in ("agreement", "bound", "brevity")]
    yield (*named, "negclip", "neighbours", f"head:{tmp_path / 'taste.safetensors'}")
    sys.modules.pop("control_signals", None)
