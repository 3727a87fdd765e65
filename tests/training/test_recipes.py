from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, finetune_7b, pretrain_13b


def test_the_papers_recipes_have_its_numbers() -> None:
    assert pretrain_13b().optimizer.learning_rate == 1e-3
    assert pretrain_13b().parallel.zero_stage == 2
    assert finetune_7b().optimizer.learning_rate == 2e-5
    assert finetune_7b().parallel.zero_stage == 3
    assert finetune_7b().optimizer.warmup_ratio == 0.03
    assert "level_vectors" not in finetune_7b().train_parts
    without = PRETRAIN_RECIPES["pretrain_7b_none"]()
    assert without.model.alignment_mode == "none"
    assert without.train_parts == ("projector",)
    assert "gate" not in FINETUNE_RECIPES["finetune_7b_average"]().train_parts
    assert FINETUNE_RECIPES["finetune_7b_4_levels"]().model.num_levels == 4
