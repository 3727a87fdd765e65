import pytest

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_model
from training.model.trainable import set_trainable, trainable_table

PARTS = {"vision_tower", "projector", "level_vectors", "gate", "language_model"}


def trained(model):
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("stage", "parts"),
    [(1, {"projector", "level_vectors"}), (2, {"projector", "gate", "language_model"})],
)
def test_a_stage_trains_exactly_its_parts(stage, parts):
    model = build_model()
    set_trainable(model, stage)
    assert trained(model) == parts
    for row in trainable_table(model):
        assert row.num_trainable == (row.num_weights if row.name in parts else 0)


@pytest.mark.parametrize("mode", ["global", "none"])
def test_a_mode_without_gate_or_vectors_trains_what_it_has(mode):
    model = build_model(alignment_mode=mode)
    for stage in (1, 2):
        set_trainable(model, stage)
        assert trained(model) <= PARTS - {"gate", "vision_tower"}


def test_rules_of_ones_own_match_the_start_of_names():
    model = build_model()
    set_trainable(model, [r"language_model\.model\.layers\.1\.", "gate"])
    assert trained(model) == {"language_model", "gate"}
    assert not model.language_model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_a_rule_that_matches_nothing_or_the_tower_is_refused():
    model = build_model()
    with pytest.raises(ConfigError, match="no weight"):
        set_trainable(model, ["mm_projector"])
    with pytest.raises(ConfigError, match="always frozen"):
        set_trainable(model, ["vision_tower"])
    with pytest.raises(ConfigError, match="stage must be 1 or 2"):
        set_trainable(model, 3)


def test_the_table_counts_every_weight_once():
    model = build_model()
    rows = trainable_table(model)
    assert {row.name for row in rows} == PARTS
    assert sum(row.num_weights for row in rows) == sum(p.numel() for p in model.parameters())
