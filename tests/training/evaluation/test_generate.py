from pathlib import Path

import pytest
import torch

from tests.training.evaluation.benchmark_folders import answers_of, golden, words
from training.cli import run
from training.data.conversations import VICUNA_V1
from training.evaluation.generate import Answerer, load_answerer
from training.parts import load_folder


@pytest.fixture(scope="module")
def answerer(model_folder: str) -> Answerer:
    return load_answerer(model_folder, "fp32", "model")


def test_a_prompt_is_vicunas_to_the_letter(model_folder: str) -> None:
    answerer = Answerer(load_folder(model_folder, torch.float32), "vicuna_v1")
    bos = answerer._processor.tokenizer.bos_token
    for name, given, expected in golden("prompts")["rows"]:
        if isinstance(given, str):
            text = answerer.text(given, has_picture=True)
            assert text.removeprefix(bos) == expected, name
    assert answerer._processor.chat_template == VICUNA_V1


@pytest.mark.slow
def test_one_eight_and_thirty_two_at_once_say_the_same(
    model_folder: str, pope_root: str, tmp_path: Path
) -> None:
    texts = []
    for size in (1, 8, 32):
        out = tmp_path / str(size)
        assert run(words(model_folder, pope_root, out, "--batch-size", str(size))) == 0
        texts.append([row["text"] for row in answers_of(out)])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1
