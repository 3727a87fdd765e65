import pytest

from schemas.errors import ConfigError
from scoring.config import DeduplicateConfig, LevelConfig, ScoreConfig
from scoring.images.settings import ImageSettings


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (ScoreConfig, {"batch_size": 0}, "batch_size"),
        (LevelConfig, {"num_levels": 300}, "num_levels"),
        (LevelConfig, {"top_fraction": 0.0}, "top_fraction"),
    ],
)
def test_what_no_run_could_do_is_refused_before_it_starts(config, settings, said):
    with pytest.raises(ConfigError, match=said):
        config(**settings)


def test_what_is_set_by_nobody_is_allowed():
    for config in (ScoreConfig, LevelConfig, DeduplicateConfig, ImageSettings):
        assert config() == config()
