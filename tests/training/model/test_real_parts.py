from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.examples.test_assemble_models import assemble as assemble_part
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import assemble

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the demo's vision tower and language model."""
    pytest.importorskip("gguf", reason="the demo's models need the extra demo")
    folder = tmp_path_factory.mktemp("parts")
    for name in ("vision_tower", "smollm2"):
        assert assemble_part(folder, name)
    return folder


def test_smollm2_knows_the_capital_of_france(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts / "smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(parts / "smollm2")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert prompt.input_ids[0, 0] == tokenizer.bos_token_id
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )


def test_real_parts_keep_their_knowledge_and_survive_saving(parts, tmp_path):
    model, processor = assemble(f"local-dir:{parts}/vision_tower", f"{parts}/smollm2")
    model.eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    settings = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    inputs = processor.apply_chat_template(question, **settings)
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :])
    picture = {"type": "image", "image": Image.new("RGB", (60, 40), "red")}
    asked = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    inputs = processor.apply_chat_template(asked, **settings)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 49
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weights in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights), name
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
