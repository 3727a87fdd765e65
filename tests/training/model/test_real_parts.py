import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import assemble

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_real_parts_keep_their_knowledge_and_survive_saving(tmp_path):
    pytest.importorskip("gguf", reason="the demo's models need the extra demo")
    script = [sys.executable, "examples/assemble_models.py", "--out", str(tmp_path)]
    only = ["--only", "vision_tower", "smollm2"]
    subprocess.run([*script, *only], cwd=ROOT, check=True, capture_output=True, timeout=300)
    model, processor = assemble(f"local-dir:{tmp_path}/vision_tower", f"{tmp_path}/smollm2")
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
