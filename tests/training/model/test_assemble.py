"""A new model of pretrained parts."""

import torch
import transformers

from tests.training.model.test_processor import build, picture
from tests.training.model.tiny_models import (
    IMAGE_SIZE,
    build_tokenizer,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import assemble


def test_a_model_is_assembled_from_folders(tmp_path):
    model, _ = build()
    model.vision_tower.backbone.save_pretrained(tmp_path / "tower")
    transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "tower")
    model.language_model.save_pretrained(tmp_path / "words")
    build_tokenizer(True).save_pretrained(tmp_path / "words")
    assembled, its_processor = assemble(
        str(tmp_path / "tower"), str(tmp_path / "words"), num_levels=5, chat_template="{{ 1 }}"
    )
    assert type(assembled) is AlignGPTForConditionalGeneration
    assert assembled.config.num_levels == 5
    assert its_processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert its_processor.image_processor.image_size == IMAGE_SIZE
    assert its_processor.chat_template == "{{ 1 }}"
    for name, weight in model.language_model.state_dict().items():
        assert torch.equal(assembled.language_model.state_dict()[name], weight)
    inputs = its_processor(text="<image>what", images=picture())
    assert assembled.eval()(**inputs).logits.isfinite().all()
