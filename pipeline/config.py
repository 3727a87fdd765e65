"""The configuration of a curation: one frozen dataclass per stage."""

import dataclasses
import ipaddress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from schemas.errors import ConfigError, require_at_least
from schemas.records import OWN_NAMES
from schemas.stages import Stage
from scoring.config import (
    DeduplicateConfig,
    LevelConfig,
    RecaptionConfig,
    ScoreConfig,
)
from scoring.images.settings import ImageSettings
from scoring.signals.names import parse_signals


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConfig:
    """Where the pairs come from and how they are cut into shards."""

    url_column: str = "url"
    """Name of the column with the image's URL; usual other names are found when it is absent."""
    caption_column: str = "caption"
    """Name of the column with the caption, or with a list of several, of which the best scored
    counts; usual other names are found when it is absent."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files that have no header line."""
    image_folder: str | None = None
    """Folder that relative paths start from; by default the folder of the LLaVA JSON itself."""
    as_captions: bool = False
    """Whether LLaVA conversations are read as pairs, the first answer being the caption."""
    verify_hashes: bool = False
    """Whether columns named sha256, sha512 or md5 are hashes that an image's downloaded bytes must
    have. Many tables have them of other bytes: of what a site served years ago, or of a resized
    copy."""
    deny_urls: tuple[str, ...] = ()
    """Files of addresses that are not to be held, a line each (also .gz): URLs, or MD5, SHA-1 or
    SHA-256 of URLs. Of what matches, the rejected row keeps neither address nor caption."""
    deny_hosts: tuple[str, ...] = ()
    """Files of hosts, a line each; a domain stands for all hosts in it."""
    keep_columns: tuple[str, ...] = ()
    """Further columns of the input that go along into train/, with their type, as NAME or, under
    another name, NAME=NEW: uid NSFW width=told_width."""
    pairs_per_shard: int = 10_000
    """Pairs in a shard, the unit of work, of retry and of resume."""

    def __post_init__(self) -> None:
        names = [new for _, new in self.kept_names]
        for name in names:
            # SQL, and so `browse` and `select`, does not tell case apart.
            is_ours = name.lower() in OWN_NAMES
            if not name or is_ours or sum(name.lower() == other.lower() for other in names) > 1:
                problem = "is a column of every dataset" if is_ours else "is named twice"
                raise ConfigError(
                    f"read.keep_columns: {name!r} {problem if name else 'is no name'}; give the "
                    f"column another name, as in {name or 'NAME'}=told_{name or 'name'}"
                )
        require_at_least(1, self, ("pairs_per_shard",), "read.")

    @property
    def kept_names(self) -> tuple[tuple[str, str], ...]:
        """Name in the input and name in the dataset of each column that is kept."""
        parts = (spelled.partition("=") for spelled in self.keep_columns)
        return tuple((name, new if sign else name) for name, sign, new in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig(ImageSettings):
    """How images are downloaded, decoded and stored."""

    engine: Literal["aligngpt", "img2dataset"] = "aligngpt"
    """What downloads. img2dataset's own downloader does not keep our guards: docs/fetching.md."""
    connections: int = 1024
    """Downloads at once in each worker process; fewer where the system lets it open fewer files."""
    shards_at_once: int = 4
    """Shards that a worker process fetches at once, with the same connections: while one waits for
    its last slow hosts, the next ones go on. Each holds its rows in memory and 2 MiB of images."""
    connections_per_host: int = 8
    """Downloads at once from one host, by all worker processes together."""
    requests_per_second_per_host: float = 0.0
    """Requests that one host gets in a second, at most, from all worker processes together; 0 sets
    no rate."""
    sharing_workers: int = 0
    """Worker processes that fetch at once and share what one host may be asked; 0 takes --workers.
    To be said on other runners than local and ray, which do not tell: on Dataflow
    --max_num_workers times the vCPUs of a worker."""
    timeout_seconds: float = 10.0
    """Budget for one image, redirects and retries included, waits for a host's rate not."""
    retries: int = 2
    """Further tries, within timeout_seconds, after a failure that may pass by itself."""
    max_bytes: int = 32 * 1024 * 1024
    """Largest response read, after decompression."""
    max_buffered_bytes: int = 256 * 1024 * 1024
    """Downloaded bytes that wait in memory in each worker process, at most."""
    max_redirects: int = 5
    """Redirects followed for one image."""
    allow_networks: tuple[str, ...] = ()
    """Networks (CIDR) that may be reached although they are not public."""
    allow_ports: tuple[int, ...] = (80, 443)
    """Ports that may be reached."""
    allow_folders: tuple[str, ...] = ()
    """Folders whose files are read where a pair's url is a path; none by default. Local, or in an
    object store as fsspec URLs."""
    deny_hashes: tuple[str, ...] = ()
    """Files of hashes, a line each (also .gz), of pictures that are not to be held: MD5, SHA-1 or
    SHA-256 of the downloaded bytes, or our pixel_hash. A list that is given later holds for what is
    fetched from then on; `purge` applies it to what is there."""
    blur_boxes: str | None = None
    """Column (one of read.keep_columns) with boxes to blur, such as faces found elsewhere: a list
    of [left, top, right, bottom], from 0 to 1 of the upright picture; of several pictures, such a
    list for each. A row whose boxes cannot be read is rejected."""
    proxy: str | None = None
    """Proxy that all requests go through, as http://HOST:PORT; variables of the environment are not
    read but for ALIGNGPT_PROXY_CREDENTIALS=USER:PASSWORD. Addresses are judged as far as names
    resolve here; of other names, only the proxy knows where they lead."""
    ca_file: str | None = None
    """Certificates (PEM) that are trusted beside the system's."""
    user_agent: str = "aligngpt/0.1"
    """Who asks; robots.txt is read for the part before the slash."""
    contact: str | None = None
    """Address (web page or mail) that a host's owner can turn to; sent with the user agent."""
    respects_robots: bool = True
    """Whether robots.txt is asked and followed."""
    respects_robots_tag: bool = True
    """Whether images marked X-Robots-Tag: noai, noimageai, noindex or noimageindex are left."""
    respects_tdm: bool = True
    """Whether text-and-data-mining reservations (header, tdmrep.json) are followed."""
    host_failures: int = 8
    """Failures in a row after which a host counts as dead for a while; 0 never gives one up."""
    host_pause_seconds: float = 300.0
    """How long a dead host is left alone."""
    decode_processes: int = 0
    """Processes that decode and encode; 0 takes one for each core."""
    decode_timeout_seconds: float = 60.0
    """Time that decoding and encoding one image may take."""

    def __post_init__(self) -> None:
        for name in (
            "connections",
            "shards_at_once",
            "connections_per_host",
            "timeout_seconds",
            "max_bytes",
            "max_buffered_bytes",
            "decode_timeout_seconds",
            "max_pixels",
            "max_frames",
            "image_size",
        ):
            if not getattr(self, name) > 0:  # so is NaN
                raise ConfigError(f"fetch.{name} must be positive, got {getattr(self, name)}")
        from_zero = (
            "retries",
            "max_redirects",
            "decode_processes",
            "host_failures",
            "min_side",
            "sharing_workers",
            "requests_per_second_per_host",
            "host_pause_seconds",
        )
        require_at_least(0, self, from_zero, "fetch.")
        if self.engine == "img2dataset" and (self.respects_robots or self.respects_tdm):
            raise ConfigError(
                "fetch.engine img2dataset asks neither robots.txt nor tdmrep.json, keeps from no "
                "private address behind a name or a redirect, and has no limit of bytes or total "
                "time: to take that, say --fetch.no-respects-robots and --fetch.no-respects-tdm as "
                "well; otherwise leave fetch.engine at aligngpt"
            )
        if not 1 <= self.image_quality <= 100:
            raise ConfigError(f"fetch.image_quality must be in 1..100, got {self.image_quality}")
        if not self.max_aspect_ratio >= 1:
            raise ConfigError(
                f"fetch.max_aspect_ratio is longest over shortest side, at least 1, "
                f"got {self.max_aspect_ratio}"
            )
        _check_proxy(self.proxy)
        for network in self.allow_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError(
                    f"fetch.allow_networks takes networks such as 10.1.0.0/16, got {network!r}: "
                    f"{error}"
                ) from error

    @property
    def images(self) -> ImageSettings:
        """Which images are taken, and how they are stored."""
        names = [field.name for field in dataclasses.fields(ImageSettings)]
        return ImageSettings(**{name: getattr(self, name) for name in names})


def _check_proxy(proxy: str | None) -> None:
    """Raises `ConfigError` unless it is a proxy's address; a password in it is not repeated."""
    if proxy is None:
        return
    if "@" in proxy:
        raise ConfigError(
            "fetch.proxy must not hold a user name or a password, since it is stored with the "
            "dataset: set ALIGNGPT_PROXY_CREDENTIALS=USER:PASSWORD in the environment"
        )
    try:
        parts = urlsplit(proxy)
        is_address = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"fetch.proxy must be an address such as http://proxy:3128, got {proxy!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """How the training shards are cut."""

    samples_per_shard: int = 10_000
    """Samples in a train shard; only the last has fewer."""

    def __post_init__(self) -> None:
        require_at_least(1, self, ("samples_per_shard",), "pack.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationConfig:
    """A whole curation."""

    read: ReadConfig = field(default_factory=ReadConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    levels: LevelConfig = field(default_factory=LevelConfig)
    recaption: RecaptionConfig = field(default_factory=RecaptionConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    is_scored: bool = True
    """Whether pairs are scored, de-duplicated and levelled; instruction samples are not."""

    def __post_init__(self) -> None:
        names = {entry.rpartition("=")[2] for entry in self.read.keep_columns}
        if self.fetch.blur_boxes is not None and self.fetch.blur_boxes not in names:
            raise ConfigError(
                f"fetch.blur_boxes {self.fetch.blur_boxes!r} must be a column that goes along: add "
                f"--read.keep-columns {self.fetch.blur_boxes}"
            )
        for spec in parse_signals(self.score.signals):
            if spec.name.lower() in {name.lower() for name in names}:
                raise ConfigError(
                    f"score.signals: {spec.name!r} is a column of the input that read.keep_columns "
                    f"takes along; give the signal another name, as in my_{spec.name}=…"
                )
        if self.is_scored and self.deduplicate.threshold <= 1 and not self.score.keep_embeddings:
            raise ConfigError(
                "score.keep_embeddings is False, but near-duplicates are found by embeddings: "
                "keep them, or set deduplicate.threshold above 1 to drop exact duplicates only"
            )
        if self.is_recaptioned:
            self._check_recaption()

    def _check_recaption(self) -> None:
        """Raises `ConfigError` where captions by a model cannot be levelled as the others are."""
        if not self.is_scored:
            raise ConfigError(
                "recaption.model is set, but this recipe does not score: captions are written for "
                "the lowest levels of scored pairs. Leave it out, or take another recipe"
            )
        if self.levels.by != "clip_score":
            raise ConfigError(
                f"recaption.model cannot be set together with levels.by {self.levels.by!r}: a new "
                "caption is chosen and levelled by its clip_score. Level by clip_score"
            )
        highest = max(self.recaption.levels)
        if highest > self.levels.num_levels:
            raise ConfigError(
                f"recaption.levels names level {highest}, but levels.num_levels is "
                f"{self.levels.num_levels}: name levels from 1 to that"
            )

    @property
    def is_recaptioned(self) -> bool:
        """Whether a model writes captions for some of the pictures."""
        return self.recaption.model is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of this curation, in their order."""
        if not self.is_scored:
            return (Stage.READ, Stage.FETCH, Stage.PACK)
        return tuple(
            stage for stage in Stage if stage is not Stage.RECAPTION or self.is_recaptioned
        )
