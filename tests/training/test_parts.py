from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.test_train import tiny_config
from training.parts import from_folder, from_parts, load_folder


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_an_attention_whose_package_is_not_installed_is_refused(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts)
    wanted = replace(config, model=replace(config.model, attention="flash_attention_2"))
    with pytest.raises(ConfigError, match=r"package that is not installed .*model\.attention auto"):
        from_parts(wanted)
    parts = from_parts(config)
    parts.model.save_pretrained(tmp_path)
    parts.processor.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"package that is not installed .*model\.attention auto"):
        from_folder(str(tmp_path), wanted)


@pytest.mark.parametrize("layer", [40, 3, -4])
def test_a_layer_that_the_tower_does_not_have_is_refused(
    tiny_parts: dict[str, str], layer: int
) -> None:
    config = tiny_config(tiny_parts)
    with pytest.raises(ConfigError, match=rf"must be in -3\.\.2 .* 2 layers.* got {layer}"):
        from_parts(replace(config, model=replace(config.model, vision_feature_layer=layer)))


def test_a_tower_that_timm_does_not_know_is_refused(tiny_parts: dict[str, str]) -> None:
    config = tiny_config(tiny_parts)
    with pytest.raises(ConfigError, match=r"model\.vision_tower 'timm:no_such_model'"):
        from_parts(replace(config, model=replace(config.model, vision_tower="timm:no_such_model")))


def test_a_model_folder_whose_weights_are_cut_off_is_refused(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    parts = from_parts(tiny_config(tiny_parts))
    parts.model.save_pretrained(tmp_path)
    parts.processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"the model folder .* could not be loaded"):
        load_folder(str(tmp_path), torch.float32)


def test_a_folder_that_holds_something_else_is_named_as_what_it_is(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{")
    config = tiny_config(tiny_parts)
    language_model = tiny_parts["language_model"]
    for load in (
        lambda folder: load_folder(folder, torch.float32),
        lambda f: from_folder(f, config),
    ):
        with pytest.raises(ConfigError, match=r"is a run: its model is .*/model, once it is"):
            load(str(tmp_path))
        with pytest.raises(ConfigError, match="a model of the kind llama, not aligngpt"):
            load(language_model)
        with pytest.raises(ConfigError, match=r"no config\.json"):
            load(str(tmp_path / "nosuch"))
        with pytest.raises(ConfigError, match=r"config\.json is no JSON that can be read"):
            load(str(tmp_path / "cut"))
