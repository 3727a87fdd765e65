import pytest
import torch

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_model
from training.model.published.stage_1 import put_stage_1, read_stage_1, save_stage_1


def load(model, file):
    put_stage_1(model, read_stage_1(file), file)


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model."])
def test_a_stage_1_file_of_any_prefix_is_read_into_projector_and_level_vectors(prefix, tmp_path):
    source, model = build_model(), build_model()
    torch.nn.init.normal_(source.level_vectors.weight)
    save_stage_1(source, tmp_path / "ours.bin")
    saved = torch.load(tmp_path / "ours.bin", weights_only=True)
    assert set(saved) == {
        "mm_projector.0.weight", "mm_projector.0.bias", "mm_projector.2.weight",
        "mm_projector.2.bias", "align_indicators.indicator_embs",
    }  # fmt: skip
    torch.save({prefix + name: weight for name, weight in saved.items()}, tmp_path / "theirs.bin")
    load(model, tmp_path / "theirs.bin")
    for part in ("projector", "level_vectors"):
        for name, weight in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], weight)


def test_a_stage_1_file_of_other_weights_is_refused(tmp_path):
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ConfigError, match="must have"):
        load(build_model(), tmp_path / "other.bin")


def test_a_stage_1_file_of_another_width_is_refused(tmp_path):
    save_stage_1(build_model(num_levels=5), tmp_path / "five.bin")
    with pytest.raises(ConfigError, match=r"level_vectors.weight of shape \(5, 16\)"):
        load(build_model(), tmp_path / "five.bin")
