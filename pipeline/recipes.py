"""Complete configurations by name: a run is a recipe and a few flags."""

from collections.abc import Callable
from typing import Literal

from pipeline.config import CurationConfig, FetchConfig, PackConfig, ReadConfig
from scoring.config import DeduplicateConfig, LevelConfig, ScoreConfig

RecipeName = Literal["laion_pairs", "datacomp_top30", "demo", "llava_instructions"]


def laion_pairs() -> CurationConfig:
    """Returns the default for web pairs: OpenAI's ViT-L/14, eight levels as in the paper.

    Source: arXiv:2405.14129, section 3 (CLIP score, N = 8).
    """
    return CurationConfig(
        read=ReadConfig(url_column="url", caption_column="caption"),
        score=ScoreConfig(model="ViT-L-14", pretrained="openai"),
        levels=LevelConfig(num_levels=8),
    )


def datacomp_top30() -> CurationConfig:
    """Returns DataComp's filter by score: the best 30 % of the pairs, in eight levels.

    Images are kept as DataComp stores them, the longest side at most 512.

    Source: arXiv:2304.14108, baseline "CLIP score (L/14 30%)".
    """
    return CurationConfig(
        fetch=FetchConfig(image_size=512, resize_mode="keep_ratio_largest"),
        score=ScoreConfig(model="ViT-L-14", pretrained="openai"),
        levels=LevelConfig(num_levels=8, top_fraction=0.3),
    )


def demo() -> CurationConfig:
    """Returns what `make demo` uses: a CPU, the demonstration CLIP, a web server of its own.

    The only addresses opened are the loopback ones that the demo's server listens on.
    """
    return CurationConfig(
        read=ReadConfig(pairs_per_shard=128),
        fetch=FetchConfig(
            connections=16,
            timeout_seconds=5.0,
            allow_networks=("127.0.0.1/32",),
            allow_ports=(80, 443, 8970),
            image_size=224,
        ),
        score=ScoreConfig(
            model="local-dir:demo/models/demo_clip",
            pretrained="",
            device="cpu",
            batch_size=32,
            threads=1,
        ),
        deduplicate=DeduplicateConfig(threshold=0.97),
        levels=LevelConfig(num_levels=8),
        pack=PackConfig(samples_per_shard=128),
    )


def llava_instructions() -> CurationConfig:
    """Returns what turns a LLaVA JSON with its image folder into shards for stage 2.

    Instruction samples are neither scored nor levelled: they go read, fetch, pack. Their images
    are kept large enough for a tower of 336 pixels.
    """
    return CurationConfig(
        read=ReadConfig(pairs_per_shard=10_000),
        fetch=FetchConfig(image_size=336),
        is_scored=False,
    )


RECIPES: dict[str, Callable[[], CurationConfig]] = {
    "laion_pairs": laion_pairs,
    "datacomp_top30": datacomp_top30,
    "demo": demo,
    "llava_instructions": llava_instructions,
}
