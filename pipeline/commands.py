"""The commands of `aligngpt-curate` with their options; each docstring is the command's help."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from pipeline.config import CurationConfig, FetchConfig, PackConfig, ReadConfig
from pipeline.job.ray.options import RayOptions
from pipeline.recipes import RecipeName, laion_pairs
from schemas.errors import ConfigError
from schemas.stages import Stage
from scoring.config import DeduplicateConfig, LevelConfig, RecaptionConfig, ScoreConfig

Dataset = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command that runs stages takes."""

    stages: ClassVar[tuple[Stage, ...]] = ()
    """Those that it runs, where its options do not say."""
    out: str
    """Folder of the dataset, or an fsspec URL such as s3://bucket/folder."""
    recipe: RecipeName | None = None
    """Complete configuration to start from; flags override it. Stages alone otherwise go on with
    the configuration of the folder, `curate` and new folders with laion_pairs."""
    runner: str = "local"
    """local; ray, on a Ray cluster; or a Beam runner: PortableRunner, FlinkRunner, SparkRunner,
    DataflowRunner, PrismRunner. Their own flags stand at the end, after --."""
    workers: int = 1
    """Processes of the local runner; with 1 everything runs in this process. With --runner ray,
    workers on the cluster."""
    ray: Annotated[RayOptions, tyro.conf.arg(name="")] = field(default_factory=RayOptions)
    redo: Annotated[Stage | None, tyro.conf.EnumChoicesFromValues] = None
    """Remove first what this stage and all stages after it made, to make it anew."""


@dataclass(frozen=True, kw_only=True)
class Curate(RunOptions):
    """Turn a list of image URLs and captions into an aligned training set: all stages."""

    pairs: tuple[str, ...]
    """Files, globs or URLs with the pairs: Parquet, CSV, TSV, JSONL (also .gz), URL lists, LLaVA
    JSON; existing WebDataset shards ({00000..00099}.tar); or folders of images with captions."""
    dry_run: bool = False
    """Build the graph as the runner would get it, check and show it, and stop there: nothing is
    written and nothing is sent."""
    config: Annotated[CurationConfig, tyro.conf.arg(name="")] = field(default_factory=laion_pairs)


@dataclass(frozen=True, kw_only=True)
class Read(RunOptions):
    """Read the pairs, give each its key, drop repeated rows and cut the rest into shards."""

    stages = (Stage.READ,)
    pairs: tuple[str, ...]
    """Files, globs or URLs with the pairs, as for `curate`."""
    read: ReadConfig = field(default_factory=ReadConfig)


@dataclass(frozen=True, kw_only=True)
class Fetch(RunOptions):
    """Download, check, resize and store the images."""

    stages = (Stage.FETCH,)
    pairs: tuple[str, ...] = ()
    """Files, globs or URLs with the pairs, to read them first; none if `read` has run."""
    read: ReadConfig = field(default_factory=ReadConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)


@dataclass(frozen=True, kw_only=True)
class Score(RunOptions):
    """Score every fetched pair with CLIP."""

    stages = (Stage.SCORE,)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True, kw_only=True)
class Deduplicate(RunOptions):
    """Keep the best scored of every group of equal or nearly equal images."""

    stages = (Stage.DEDUPLICATE,)
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)


@dataclass(frozen=True, kw_only=True)
class Level(RunOptions):
    """Cut the scores into equally large alignment levels."""

    stages = (Stage.LEVEL,)
    levels: LevelConfig = field(default_factory=LevelConfig)


@dataclass(frozen=True, kw_only=True)
class Recaption(RunOptions):
    """Let a model write captions for the pictures of the lowest levels; the better one counts."""

    stages = (Stage.RECAPTION,)
    recaption: RecaptionConfig = field(default_factory=RecaptionConfig)

    def __post_init__(self) -> None:
        if self.out is not tyro.MISSING and self.recaption.model is None:
            raise ConfigError(
                "--recaption.model is missing: name an image-text-to-text model of transformers"
            )


@dataclass(frozen=True, kw_only=True)
class Pack(RunOptions):
    """Write the train shards: WebDataset tars of exact size, with Parquet beside them."""

    stages = (Stage.PACK,)
    pack: PackConfig = field(default_factory=PackConfig)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Ask again for images whose failure may have passed, and merge the gains.

    A shard that gains images is written and scored anew; other shards keep both. Duplicates and
    levels are found over all pairs again, and the train shards are packed anew.
    """

    dataset: Dataset
    """Folder of the dataset, or an fsspec URL."""
    reasons: tuple[str, ...] = ()
    """Reasons to ask again for, such as timed_out; by default all that are retryable."""
    runner: str = "local"
    """As for `curate`."""
    workers: int = 1
    """Processes of the local runner, or workers on a Ray cluster."""
    ray: Annotated[RayOptions, tyro.conf.arg(name="")] = field(default_factory=RayOptions)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write manifest.json and report.html from what the stages left."""

    stages: ClassVar[tuple[Stage, ...]] = ()
    out: str
    """Folder of the dataset, or an fsspec URL."""
    recipe: RecipeName | None = None
    """Complete configuration to record, where the folder has none of its own."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Make a new dataset of the samples that fulfil a condition.

    A condition is what stands behind WHERE in SQL, over the columns of the train tables, such as
    "alignment_level >= 6 and width >= 256 and caption not ilike '%stock photo%'". DuckDB computes
    it, with no access to files or the network. The manifest names the dataset that was chosen from.
    """

    dataset: Dataset
    """Folder of a finished dataset, or an fsspec URL."""
    where: str
    """SQL condition; docs/selecting.md has the columns and examples."""
    out: str
    """Folder of the new dataset, or an fsspec URL. The same command again goes on where it was."""
    cut_levels: int | None = None
    """Cut so many equally large levels among what is chosen; by default each sample keeps its own,
    so that level 8 means what it meant."""
    samples_per_shard: int | None = None
    """Samples in a train shard; as many as before by default."""

    def __post_init__(self) -> None:
        check_samples_per_shard(self.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make one dataset of several.

    Samples stand in the order of their keys. Where two datasets have the same pair (one key), that
    of the first counts. Scores of different models do not compare: such datasets are refused.
    """

    datasets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATASETS")]
    """Folders of finished datasets, or fsspec URLs."""
    out: str
    """Folder of the new dataset, or an fsspec URL. The same command again goes on where it was."""
    cut_levels: int | None = None
    """Cut so many equally large levels over all; by default each sample keeps its own."""
    samples_per_shard: int | None = None
    """Samples in a train shard; as many as the first dataset has by default."""

    def __post_init__(self) -> None:
        if self.datasets is not tyro.MISSING and len(self.datasets) < 2:
            raise ConfigError("merge takes two datasets or more")
        check_samples_per_shard(self.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Remove from a finished dataset what deny-lists name, and prove that it is gone.

    Each table, tar and text that holds a match is written anew without it; the pair stays among the
    rejected with its key and reason alone. Then all files are read again. Levels stay as they were
    cut.
    """

    dataset: Dataset
    """Folder of a finished dataset, or an fsspec URL."""
    deny_urls: tuple[str, ...] = ()
    """Files of addresses, a line each (also .gz): URLs, or MD5, SHA-1 or SHA-256 of URLs."""
    deny_hosts: tuple[str, ...] = ()
    """Files of hosts, a line each; a domain stands for all hosts in it."""
    deny_hashes: tuple[str, ...] = ()
    """Files of hashes, a line each: MD5, SHA-1 or SHA-256 of pictures as downloaded or as stored,
    or our pixel_hash. Of pictures as downloaded only the SHA-256 is known once they are fetched."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Write a finished dataset as the Hugging Face Hub and other readers expect it.

    Splits, a card with every field typed, Croissant, checksums; for tars also what wids and
    Megatron-Energon read. `datasets`, `webdataset`, DuckDB, pandas and polars open it in one line.
    """

    dataset: Dataset
    """Folder of a finished dataset, or an fsspec URL."""
    out: str
    """New folder of the publication, or an fsspec URL. The same command again goes on where it
    was."""
    form: Literal["webdataset", "parquet"] = "webdataset"
    """Tars of members, or tables with the images within."""
    name: str = ""
    """What it is called in its card; by default as the folder is."""
    licence: str = "other"
    """Identifier of the licence as the Hub writes it, such as cc-by-4.0."""
    language: tuple[str, ...] = ("en",)
    """Codes of the captions' languages."""
    validation_ratio: float = 0.01
    """Share that goes to `validation`, by a hash of the image's address; 0 makes no such split.
    `aligngpt-train` holds out the same samples by the same ratio."""
    samples_per_shard: int | None = None
    """Samples in a shard; as many as the dataset's shards have by default."""

    def __post_init__(self) -> None:
        check_samples_per_shard(self.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what is in a dataset: levels, reasons of rejection, sizes, examples."""

    dataset: Dataset
    """Folder of the dataset, or an fsspec URL."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Reckon what a curation of another size takes: hours, bytes, GPU hours and dollars.

    Each stage of a finished dataset has recorded what its work took. From that, or from a run that
    comes with the program, follows what more pairs take on more workers. docs/planning.md has the
    laws, and predictions held against real runs.
    """

    pairs: float
    """Rows of the input, such as 1e9."""
    workers: int = 1
    """Processes at work at once, each as those of the run."""
    gpus: int = 0
    """GPUs that score, and search for duplicates if the run did; 0 leaves all to the workers."""
    datasets: Annotated[tuple[str, ...], tyro.conf.arg(name="from")] = ()
    """Folder or fsspec URL of a finished dataset that was made of such pairs in the way planned; of
    two of sizes apart, the smaller tells what is fixed from what grows. By default the run that
    comes with the program, of a small model on a CPU."""
    gpu_pairs_per_second: float | None = None
    """Pairs that one GPU scores in a second; by default as in the run, or an assumed rate."""
    price_worker_hour: float = 0.05
    """Dollars for a worker's hour; an example."""
    price_gpu_hour: float = 2.5
    """Dollars for a GPU's hour, its host with it; an example."""
    price_terabyte_month: float = 20.0
    """Dollars for a month of a terabyte; an example."""

    def __post_init__(self) -> None:
        if self.pairs is not tyro.MISSING and not (self.pairs >= 1 and self.pairs % 1 == 0):
            raise ConfigError(f"--pairs must be a whole number from 1 on, got {self.pairs}")
        if self.workers < 1 or self.gpus < 0:
            wrong = f"--workers {self.workers} and --gpus {self.gpus}"
            raise ConfigError(f"{wrong}: at least one worker is needed, and GPUs from 0 on")
        for name in ("price_worker_hour", "price_gpu_hour", "price_terabyte_month"):
            if not 0 <= getattr(self, name) < float("inf"):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must be dollars from 0 on, got {getattr(self, name)}")
        rate = self.gpu_pairs_per_second
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigError(f"--gpu-pairs-per-second must be positive, got {rate}")


@dataclass(frozen=True, kw_only=True)
class Browse:
    """Look at all rows of a dataset, those left out too, on a page that this machine alone sees.

    Filter, sort, compare duplicates and the pairs around a level's edge, and take the condition of
    what is shown to `select`. Needs a dataset on this machine; loads nothing from the web.
    """

    dataset: Dataset
    """Folder of the dataset."""
    port: int = 0
    """Port of the page on 127.0.0.1; 0 takes one that is free."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be in 0..65535, got {self.port}")


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a dataset: read everything again, and hold each part against the others.

    Tar against table, both against the manifest, counts against the stages' tables, levels against
    their edges, the head of each picture, each caption and each key. Every fault is named with its
    file and row; the exit status is then 1.
    """

    dataset: Dataset
    """Folder of the dataset, or an fsspec URL."""
    quick: bool = False
    """Check the hashes of the train shards and the counts of the manifest alone."""


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Compute a sample of the scores again, and report how far they are from the stored ones."""

    dataset: Dataset
    """Folder of the dataset, or an fsspec URL."""
    sample: int = 1000
    """Pairs to score again."""
    model: str = ""
    """Where the scoring model is now, if it was a local file or folder and has moved."""
    pretrained: str = ""
    """Where its weights are now, likewise."""
    itm_trust_remote_code: bool = False
    """Whether the code that the models of itm: signals bring may run, as it did when they were
    made."""


def check_samples_per_shard(number: int | None) -> None:
    """Raises `ConfigError` if there is no such number of samples in a shard."""
    if number is not None and number < 1:
        raise ConfigError(f"--samples-per-shard must be at least 1, got {number}")


Command = (
    Curate
    | Read
    | Fetch
    | Retry
    | Score
    | Deduplicate
    | Level
    | Recaption
    | Pack
    | Report
    | Select
    | Merge
    | Publish
    | Purge
    | Inspect
    | Plan
    | Browse
    | Verify
    | Rescore
)

COMMANDS: dict[str, type[Command]] = {
    "curate": Curate,
    "read": Read,
    "fetch": Fetch,
    "retry": Retry,
    "score": Score,
    "deduplicate": Deduplicate,
    "level": Level,
    "recaption": Recaption,
    "pack": Pack,
    "report": Report,
    "select": Select,
    "merge": Merge,
    "publish": Publish,
    "purge": Purge,
    "inspect": Inspect,
    "plan": Plan,
    "browse": Browse,
    "verify": Verify,
    "rescore": Rescore,
}
