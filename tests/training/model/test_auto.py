"""One import is enough for the Auto classes; nothing else of ours needs to be loaded."""

import subprocess
import sys

import pytest

from tests.training.model.test_processor import build

PROGRAM = """
import sys
import training.model.auto
from transformers import AutoModelForImageTextToText, AutoProcessor
print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__name__)
print(type(AutoProcessor.from_pretrained(sys.argv[1]).image_processor).__name__)
"""


@pytest.mark.slow
def test_one_import_makes_the_auto_classes_know_the_model(tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AlignGPTForConditionalGeneration", "AlignGPTImageProcessor"]
