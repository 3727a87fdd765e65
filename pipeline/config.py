"""The configuration of a curation: one frozen dataclass per stage."""

from dataclasses import dataclass, field
from typing import Literal

from schemas.errors import ConfigError
from schemas.records import ImageFormat
from scoring.config import DeduplicateConfig, LevelConfig, ScoreConfig

ResizeMode = Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConfig:
    """Where the pairs come from and how they are cut into shards."""

    url_column: str = "url"
    """Name of the column with the image's URL."""
    caption_column: str = "caption"
    """Name of the column with the caption."""
    image_folder: str | None = None
    """Folder that the relative paths of a LLaVA JSON start from."""
    pairs_per_shard: int = 10_000
    """Pairs in a shard, the unit of work, of retry and of resume."""

    def __post_init__(self) -> None:
        if self.pairs_per_shard < 1:
            raise ConfigError(
                f"read.pairs_per_shard must be at least 1, got {self.pairs_per_shard}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """How images are downloaded, decoded and stored."""

    connections: int = 256
    """Downloads at once in each worker process."""
    timeout_seconds: float = 10.0
    """Budget for one image, from connect to last byte, redirects and retries included."""
    max_bytes: int = 32 * 1024 * 1024
    """Largest response read, after decompression."""
    max_pixels: int = 64_000_000
    """Largest image decoded, checked in its header before decoding."""
    min_side: int = 0
    """Shortest side that an image must have as downloaded, in pixels."""
    max_aspect_ratio: float = 20.0
    """Longest side over shortest side, at most."""
    max_redirects: int = 5
    """Redirects followed for one image."""
    allow_networks: tuple[str, ...] = ()
    """Networks (CIDR) that may be reached although they are not public."""
    allow_ports: tuple[int, ...] = (80, 443)
    """Ports that may be reached."""
    resize_mode: ResizeMode = "keep_ratio"
    """keep_ratio: shortest side to image_size; keep_ratio_largest: longest side; no: as it is."""
    image_size: int = 256
    """Target side, in pixels."""
    can_upscale: bool = False
    """Whether smaller images are enlarged."""
    image_format: ImageFormat = "jpg"
    """How images are stored."""
    image_quality: int = 95
    """Quality of jpg and webp, 1 to 100."""

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0:
            raise ConfigError(f"fetch.timeout_seconds must be positive, got {self.timeout_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """How the training shards are cut."""

    samples_per_shard: int = 10_000
    """Samples in a train shard; only the last has fewer."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ConfigError(
                f"pack.samples_per_shard must be at least 1, got {self.samples_per_shard}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationConfig:
    """A whole curation."""

    read: ReadConfig = field(default_factory=ReadConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    levels: LevelConfig = field(default_factory=LevelConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    is_scored: bool = True
    """Whether pairs are scored, de-duplicated and levelled; instruction samples are not."""

    def __post_init__(self) -> None:
        if self.is_scored and self.deduplicate.threshold <= 1 and not self.score.keep_embeddings:
            raise ConfigError(
                "score.keep_embeddings is False, but near-duplicates are found by embeddings: "
                "keep them, or set deduplicate.threshold above 1 to drop exact duplicates only"
            )
