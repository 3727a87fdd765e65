"""Configurations that cannot work are refused before work starts."""

import pytest

from pipeline.config import CurationConfig, FetchConfig, PackConfig, ReadConfig
from schemas.errors import ConfigError
from schemas.stages import Stage
from scoring.config import DeduplicateConfig, RecaptionConfig, ScoreConfig


def test_the_column_must_go_along():
    with pytest.raises(ConfigError, match=r"add --read\.keep-columns faces"):
        CurationConfig(fetch=FetchConfig(blur_boxes="faces"))
    read = ReadConfig(keep_columns=("boxes=faces",))
    CurationConfig(read=read, fetch=FetchConfig(blur_boxes="faces"))


def test_a_signal_cannot_be_called_as_a_column_of_the_input():
    with pytest.raises(ConfigError, match="'nsfw' is a column of the input"):
        CurationConfig(
            read=ReadConfig(keep_columns=("NSFW=nsfw",)),
            score=ScoreConfig(signals=("nsfw=negclip",)),
        )


def test_the_engine_is_taken_only_together_with_what_it_cannot_do() -> None:
    for settings in ({}, {"respects_robots": False}, {"respects_tdm": False}):
        with pytest.raises(ConfigError, match=r"asks neither robots\.txt nor tdmrep\.json"):
            FetchConfig(engine="img2dataset", **settings)
    FetchConfig(engine="img2dataset", respects_robots=False, respects_tdm=False)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (("sha256",), "'sha256' is a column of every dataset; .* as in sha256=told_sha256"),
        (("WIDTH",), "'WIDTH' is a column of every dataset; .* as in WIDTH=told_WIDTH"),
        (("file_row_number",), "is a column of every dataset"),
        (("a", "b=a"), "'a' is named twice"),
        (("NSFW", "nsfw"), "'NSFW' is named twice"),
        (("a=",), "is no name"),
    ],
)
def test_names_that_a_dataset_has_already_are_refused(keep, words):
    with pytest.raises(ConfigError, match=words):
        ReadConfig(keep_columns=keep)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connections": 0}, "fetch.connections must be positive, got 0"),
        ({"timeout_seconds": -1.0}, "fetch.timeout_seconds must be positive"),
        ({"timeout_seconds": float("nan")}, "fetch.timeout_seconds must be positive, got nan"),
        ({"host_pause_seconds": float("nan")}, "must be at least 0, got nan"),
        ({"max_aspect_ratio": float("nan")}, "at least 1, got nan"),
        ({"retries": -1}, "fetch.retries must be at least 0, got -1"),
        ({"host_pause_seconds": -1.0}, "fetch.host_pause_seconds must be at least 0, got -1"),
        ({"image_quality": 101}, r"fetch.image_quality must be in 1\.\.100, got 101"),
        ({"max_aspect_ratio": 0.5}, "fetch.max_aspect_ratio is longest over shortest side"),
        ({"allow_networks": ("10.1.0.0/40",)}, "networks such as 10.1.0.0/16, got '10.1.0.0/40'"),
        ({"proxy": "http://me:secret@proxy:1"}, "set ALIGNGPT_PROXY_CREDENTIALS"),
        ({"proxy": "socks5://proxy:1"}, "must be an address such as http://proxy:3128"),
        ({"proxy": "http://proxy:port"}, "must be an address such as"),
        ({"proxy": "http://proxy:1/path"}, "must be an address such as"),
    ],
)
def test_settings_of_fetching_that_cannot_work_are_refused_by_their_name(settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        FetchConfig(**settings)
    assert "secret" not in str(refused.value)


def test_images_have_the_settings_of_fetching():
    images = FetchConfig(image_size=99, min_side=3, proxy="http://proxy:3128/").images
    assert (images.image_size, images.min_side) == (99, 3)


@pytest.mark.parametrize("kind", [ReadConfig, PackConfig])
def test_a_shard_holds_something(kind):
    name = "pairs_per_shard" if kind is ReadConfig else "samples_per_shard"
    kind(**{name: 1})
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        kind(**{name: 0})


def test_a_column_is_kept_under_its_own_name_or_another():
    read = ReadConfig(keep_columns=("uid", "width=told_width", "a=b=c"))
    assert read.kept_names == (("uid", "uid"), ("width", "told_width"), ("a", "b=c"))


def test_near_duplicates_need_embeddings_and_instructions_are_not_scored():
    with pytest.raises(ConfigError, match=r"set deduplicate\.threshold above 1"):
        CurationConfig(score=ScoreConfig(keep_embeddings=False))
    dropped = ScoreConfig(keep_embeddings=False)
    assert CurationConfig(score=dropped, deduplicate=DeduplicateConfig(threshold=2.0)).is_scored
    assert CurationConfig(score=dropped, is_scored=False).stages == (
        Stage.READ,
        Stage.FETCH,
        Stage.PACK,
    )
    asked = CurationConfig(recaption=RecaptionConfig(model="me/writer"))
    assert asked.stages == tuple(Stage)
    assert CurationConfig().stages == tuple(s for s in Stage if s is not Stage.RECAPTION)
