"""How pairs are scored, how duplicates are found and how levels are cut."""

import math
from dataclasses import dataclass
from typing import Literal

from schemas.errors import ConfigError, require_at_least
from schemas.levels import check_num_levels
from scoring.levels.ranks import parse_rank_mean
from scoring.signals.names import parse_signals

Precision = Literal["auto", "fp32", "bf16", "fp16"]

ITM_PROMPT = 'Does the caption "{caption}" fit this picture? Answer yes or no.'

CAPTION_PROMPT = "Describe this picture in one short sentence."

ACCELERATOR = "type:nvidia-l4;count:1;install-nvidia-driver"
"""A GPU as Beam's resource hints name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How CLIP scores a pair."""

    model: str = "ViT-L-14"
    """open_clip's name of the model, local-dir:FOLDER, or the path of a configuration (.json)."""
    pretrained: str = "openai"
    """open_clip's tag of the checkpoint, TAG:FILE to read its weights from a local file, or the
    path of a file that has no tag; unused with local-dir:."""
    prompt_template: str = "{caption}"
    """What the text tower reads; {caption} stands for the pair's caption."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto is bf16 on a GPU or processor with instructions for it, else
    fp32. A dataset keeps what it began with."""
    compile_model: bool = False
    """Whether torch.compile speeds up the image tower, at the price of a slow start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    accelerator: str = ACCELERATOR
    """Beam's resource hint for the workers that score, given when device is cuda."""
    batch_size: int = 64
    """Pairs scored at once. Batches are formed by position, so it is part of the result."""
    threads: int = 2
    """CPU threads of the model in each worker process: fixed, so that it never shows in a score."""
    decode_threads: int = 0
    """Threads that decode images ahead of the model; 0 for one per core."""
    signals: tuple[str, ...] = ()
    """Further numbers a pair, each a column: negclip, neighbours, head:FILE.safetensors and
    MODULE:FUNCTION from stored embeddings; clip:MODEL/PRETRAINED, a second model of open_clip, and
    itm:MODEL, the answer of an image-text-to-text model, with a pass over the pictures each; and
    NAME=SIGNAL for another name; docs/signals.md."""
    itm_prompt: str = ITM_PROMPT
    """What itm:MODEL is asked; {caption} stands for the pair's caption."""
    itm_batch_size: int = 8
    """Pairs that itm:MODEL is asked about at once. Batches are formed by position."""
    itm_trust_remote_code: bool = False
    """Whether the code that itm:MODEL brings may run, with all rights that you have."""
    keep_embeddings: bool = True
    """Whether the embeddings are stored beside the score; near-duplicates need them."""

    def __post_init__(self) -> None:
        require_at_least(1, self, ("batch_size", "threads", "itm_batch_size"), "score.")
        require_at_least(0, self, ("decode_threads",), "score.")
        specs = parse_signals(self.signals)
        stored = [spec.name for spec in specs if not spec.looks_at_pictures]
        if stored and not self.keep_embeddings:
            raise ConfigError(
                f"score.signals: {', '.join(stored)} is computed from stored embeddings, but "
                "score.keep_embeddings is False: keep them, or ask for no such signals"
            )
        for name in ("prompt_template", "itm_prompt"):
            if "{caption}" not in getattr(self, name):
                raise ConfigError(
                    f"score.{name} must contain {{caption}}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeduplicateConfig:
    """Which pairs count as the same."""

    threshold: float = 0.95
    """Lowest cosine of two image embeddings that makes them near-duplicates; above 1 finds none."""
    look_difference: float = 35.0
    """Most by which near-duplicates may differ when their small copies are laid upon each other,
    0 to 255; 255 leaves that second look out. docs/deduplication.md explains it."""
    cells: int = 0
    """Number of k-means cells; 0 chooses it from the number of embeddings."""
    probes: int = 8
    """Most cells that an embedding is searched in: those across whose border a near-duplicate may
    lie, nearest first."""
    seed: int = 0
    """Of the start of k-means."""
    must_captions_agree: bool = False
    """Whether pairs are duplicates only if their captions agree too, but for case and spaces."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the cells are trained and searched; auto takes a GPU if there is one."""
    accelerator: str = ACCELERATOR
    """Beam's resource hint for the workers that search, given when device is cuda."""
    threads: int = 0
    """Cells searched at once in each worker process; 0 takes its share of the cores."""
    memory_bytes: int = 1 << 28
    """Embeddings that one worker process holds at once, in bytes."""

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 2.0:
            raise ConfigError(
                f"deduplicate.threshold must be in (0, 2] (a cosine; above 1 finds none), "
                f"got {self.threshold}"
            )
        if not 0.0 <= self.look_difference <= 255.0:
            raise ConfigError(
                "deduplicate.look_difference must be in 0..255 (255 leaves the second look out), "
                f"got {self.look_difference}"
            )
        if self.cells < 0 or self.probes < 1:
            raise ConfigError(
                f"deduplicate.cells must be at least 0 and probes at least 1, "
                f"got {self.cells} and {self.probes}"
            )
        require_at_least(0, self, ("threads",), "deduplicate.")
        require_at_least(1 << 20, self, ("memory_bytes",), "deduplicate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelConfig:
    """How the scores are cut into alignment levels."""

    num_levels: int = 8
    """Number of equally large levels."""
    by: str = "clip_score"
    """Column whose ranks decide the levels: clip_score, or one of score.signals; or several, as
    rank_mean:clip_score,negclip, by the mean of their ranks, with weights as rank_mean:a,b:2,1."""
    keep: str | None = None
    """SQL condition on clip_score and the signals, such as "nsfw < 0.3 and aesthetic > 4.5"; pairs
    that do not fulfil it are left out before the levels are cut."""
    minimum_score: float | None = None
    """Pairs scored lower are left out before the levels are cut."""
    top_fraction: float = 1.0
    """Share of the pairs, the best scored, that is levelled; the others are left out."""
    per_source: bool = False
    """Whether the levels are cut within each input file instead of over all pairs."""
    edges_from: str | None = None
    """Dataset folder (or its edges.json) whose edges are used instead of new ones."""

    def __post_init__(self) -> None:
        check_num_levels("levels.num_levels", self.num_levels)
        if parse_rank_mean(self.by) is not None and self.edges_from is not None:
            raise ConfigError(
                f"levels.by {self.by!r} cannot be set together with levels.edges_from: ranks say "
                "nothing about other data. Rank by one column, or cut new edges"
            )
        if not 0.0 < self.top_fraction <= 1.0:
            raise ConfigError(
                f"levels.top_fraction must be in (0, 1] (1 keeps all), got {self.top_fraction}"
            )
        if self.minimum_score is not None and not math.isfinite(self.minimum_score):
            raise ConfigError(f"levels.minimum_score must be finite, got {self.minimum_score}")
        if self.edges_from is not None and self.top_fraction != 1.0:
            raise ConfigError(
                "levels.top_fraction cannot be set together with levels.edges_from: the cut that "
                "was saved with the edges is used"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecaptionConfig:
    """Which pictures a model writes captions for, and how it is asked.

    Device, precision and threads are those of `score`.
    """

    model: str | None = None
    """Folder or Hub name of an image-text-to-text model of transformers that writes a caption for
    each picture of the lowest levels; the better scored of both counts. By default none does."""
    trust_remote_code: bool = False
    """Whether the code that the model brings may run, with all rights that you have."""
    levels: tuple[int, ...] = (1, 2)
    """Levels whose pictures get a caption."""
    prompt: str = CAPTION_PROMPT
    """What the model is asked beside each picture."""
    batch_size: int = 8
    """Pictures that it is asked about at once. Batches are formed by position."""
    max_new_tokens: int = 64
    """Tokens that it may write; a caption that is longer is refused."""

    def __post_init__(self) -> None:
        require_at_least(1, self, ("batch_size", "max_new_tokens"), "recaption.")
        if self.model is not None and not self.model.strip():
            raise ConfigError("recaption.model is empty: name a model, or leave the setting out")
        if not self.prompt.strip():
            raise ConfigError("recaption.prompt is empty: say what the model is to do")
        if self.model is not None and (not self.levels or min(self.levels) < 1):
            raise ConfigError(
                "recaption.levels must name levels from 1 (the worst aligned) on, got "
                f"{' '.join(map(str, self.levels)) or 'none'}"
            )
