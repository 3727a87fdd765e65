"""Recipes are what their sources say."""

import pytest

from pipeline.config import CurationConfig
from pipeline.dataset.guard import as_json, config_from_json
from pipeline.recipes import RECIPES, datacomp_top30, demo, laion_pairs, llava_instructions


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_configuration(name):
    assert isinstance(RECIPES[name](), CurationConfig)


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_being_recorded(name):
    config = RECIPES[name]()
    assert config_from_json(as_json(config)) == config


def test_web_pairs_are_scored_and_levelled_as_in_the_paper():
    config = laion_pairs()
    assert (config.score.model, config.score.pretrained) == ("ViT-L-14", "openai")
    assert config.levels.num_levels == 8
    assert datacomp_top30().levels.top_fraction == 0.3
    assert datacomp_top30().fetch.image_size == 512


def test_only_the_demo_opens_an_address_that_is_not_public():
    opened = {name: make().fetch.allow_networks for name, make in RECIPES.items()}
    assert {name for name, networks in opened.items() if networks} == {"demo"}
    assert opened["demo"] == ("127.0.0.1/32",)
    assert all(make().fetch.respects_robots for make in RECIPES.values())
    assert demo().score.model.startswith("local-dir:demo/")


def test_instructions_keep_images_large_enough_for_a_tower_of_336_pixels():
    config = llava_instructions()
    assert not config.is_scored
    assert config.fetch.image_size == 336
