"""What a model is asked, and which of its modes it can answer in."""

import pytest
from PIL import Image

from schemas.errors import ConfigError
from training.model.answering.prompt import Alignment, caption_prompt, conversation_prompt, modes_of
from training.model.config import AlignGPTConfig
from training.parts import Assembled


@pytest.mark.parametrize(
    ("mode", "modes"),
    [
        ("adaptive", ("adaptive", "local", "global", "average")),
        ("average", ("average", "global")),
        ("none", ("none",)),
    ],
)
def test_a_mode_is_offered_where_its_weights_are(mode: str, modes: tuple[str, ...]) -> None:
    config = AlignGPTConfig(alignment_mode=mode)
    assert modes_of(config) == modes
    with pytest.raises(ConfigError, match=", ".join(modes)):
        Alignment(mode="else").check(config)


def test_a_level_is_one_of_the_models() -> None:
    config = AlignGPTConfig(num_levels=4)
    Alignment(level=4, mode="local").check(config)
    for level in (0, 5):
        with pytest.raises(ConfigError, match=r"must be in 1\.\.4"):
            Alignment(level=level).check(config)
    with pytest.raises(ConfigError, match="alignment_mode none, and no levels"):
        Alignment(level=1).check(AlignGPTConfig(alignment_mode="none"))


def test_the_gate_reads_the_question_and_not_the_picture(parts: Assembled) -> None:
    picture = Image.new("RGB", (8, 8))
    prompt = caption_prompt(parts.processor, [picture], "what is", "pad")
    assert prompt.pixel_values is not None and prompt.pixel_values.shape[0] == 1
    assert len(prompt.prompt_mask) == prompt.num_tokens
    read = [i for i, mask in zip(prompt.input_ids, prompt.prompt_mask, strict=True) if mask]
    assert parts.processor.tokenizer.decode(read) == "what is"
    turns = [{"role": "user", "content": [{"type": "text", "text": "what"}]}]
    asked = conversation_prompt(parts.processor, turns, "pad")
    assert asked.pixel_values is None
    assert parts.processor.tokenizer.decode(asked.input_ids).endswith("assistant\n")
