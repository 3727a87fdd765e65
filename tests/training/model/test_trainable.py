import pytest

from schemas.errors import ConfigError
from tests.training.model.tiny_models import build_model
from training.config import STAGE_1, STAGE_2
from training.model.trainable import set_trainable, trainable_table

PARTS = {"vision_tower", "projector", "level_vectors", "gate", "language_model"}


def trained(model):
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("stage", "parts"),
    [(STAGE_1, {"projector", "level_vectors"}), (STAGE_2, {"projector", "gate", "language_model"})],
)
def test_a_stage_trains_exactly_its_parts(stage, parts):
    model = build_model()
    set_trainable(model, stage)
    assert trained(model) == parts
    for row in trainable_table(model):
        assert row.num_trainable == (row.num_weights if row.name in parts else 0)


def test_rules_of_ones_own_match_whole_names_from_the_start():
    model = build_model(text="llama")
    set_trainable(model, [r"language_model\.model\.layers\.1", r"gate\."])
    assert trained(model) == {"language_model", "gate"}
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith(("language_model.model.layers.1.", "gate.")) for n in learning)


@pytest.mark.parametrize("rule", ["mm_projector", "proj", "gate"])
def test_a_rule_that_matches_nothing_is_refused(rule):
    with pytest.raises(ConfigError, match="no weight of this model"):
        set_trainable(build_model(alignment_mode="global"), ["projector", rule])


def test_the_tower_cannot_learn():
    with pytest.raises(ConfigError, match="always frozen"):
        set_trainable(build_model(), ["vision_tower"])


def test_the_table_counts_every_weight_once():
    model = build_model()
    rows = trainable_table(model)
    assert {row.name for row in rows} == PARTS
    assert sum(row.num_weights for row in rows) == sum(p.numel() for p in model.parameters())
