"""CLIP scores: the cosine of an image and its caption under any model that open_clip can load."""

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from schemas.arithmetic import keep_kernels_apart, keep_products_reproducible
from scoring.clip.captions import PROBE_CAPTIONS, CaptionTokenizer, Tokens
from scoring.clip.checkpoints import Checkpoint, ModelIdentity, identify, resolve_checkpoint
from scoring.clip.folding import fold_norms
from scoring.clip.loading import fast_memory_format, input_dtype, load_model, load_tokenizer
from scoring.clip.packing import pack_linears
from scoring.clip.preprocess import ImagePreprocessor, ImageSource, load_batches
from scoring.clip.text_tower import TextTower, length_step
from scoring.clip.timing import ScoringTime, Stopwatch
from scoring.config import ScoreConfig
from scoring.devices import (
    claim_device,
    describe_device,
    quick_to_check,
    require_device,
    with_precision,
)

BATCHES_IN_FLIGHT = 2
"""Batches given to a GPU before waiting for the one before them."""

IMAGES_AT_ONCE = 16
"""Images of a batch that go through the model at once on a processor.

More bring no speed there, and all that is between two layers takes its room: of 64 images of the
demo's tower 0.9 GB more. torch leaves 1x1 convolutions of fewer to a slower kernel.
Source: benchmarks/score_memory.py.
"""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of n pairs. Embeddings are of unit length."""

    clip_score: npt.NDArray[np.float32]
    """Cosine: (n,). Not finite where the model's output is not."""
    image_embedding: npt.NDArray[np.float32]
    """(n, embed_dim)."""
    text_embedding: npt.NDArray[np.float32]
    """(n, embed_dim)."""
    is_truncated: npt.NDArray[np.bool_]
    """Whether the caption was longer than the context: (n,)."""
    caption_index: npt.NDArray[np.int64]
    """Which of a pair's captions scored best, and is what the others speak of: (n,)."""
    took: ScoringTime = field(default_factory=ScoringTime)


class ClipScorer:
    """A model with its preprocessing and its tokenizer, ready to score.

    It fixes the number of torch's CPU threads for the whole process. Several threads may use it.
    """

    def __init__(self, config: ScoreConfig) -> None:
        keep_products_reproducible()
        config = with_precision(config)
        checkpoint = resolve_checkpoint(config)
        self.config = config
        self.device = claim_device(config.device)
        tokenizer = load_tokenizer(checkpoint, config)
        self.tokenizer = CaptionTokenizer(tokenizer, config.prompt_template)
        self.preprocessor = ImagePreprocessor(checkpoint.preprocessing)
        self.model, arithmetic = load_model(checkpoint, config, self.device)
        visual: Any = self.model.visual
        is_exact = self.device.type == "cpu" and config.precision == "fp32"
        folded = fold_norms(visual) if is_exact else 0
        self._memory_format = fast_memory_format(self.device)
        self.model.to(memory_format=self._memory_format)
        is_packable = self.device.type == "cpu" and not config.compile_model
        packed = pack_linears(self.model) if is_packable else 0
        self.text_tower = TextTower(self.model, tokenizer, length_step(self.device))
        self.image_tower = _image_encoder(self.model, config)
        self._dtype = input_dtype(arithmetic)
        self._embedding_width = int(checkpoint.architecture["embed_dim"])
        self._lock = threading.Lock()
        self._image_batch = images_at_once(config, self.device)
        self._text_batch = config.batch_size
        self.identity: ModelIdentity = {
            **_identity(checkpoint, config, self.tokenizer),
            "arithmetic": arithmetic,
            "memory_format": str(self._memory_format).removeprefix("torch."),
            "folded_norms": str(folded),
            "packed_linears": str(packed),
            "device": describe_device(self.device),
        }

    @property
    def fitted_batch_size(self) -> int:
        """Images that went through the model at once: fewer than a batch has on a processor, or
        where memory was short."""
        return self._image_batch

    def score(
        self,
        images: Iterable[ImageSource],
        captions: Sequence[str | Sequence[str]],
        on_batch: Callable[[int], None] | None = None,
    ) -> Scores:
        """Returns the scores of n pairs.

        Args:
            captions: n; where several are given for a pair, the one that scores best counts.
            images: n images, taken one after another, at most a few batches ahead of the model.
            on_batch: told how many images have been given to the model so far.

        Raises:
            ValueError: if there are not as many images as captions.
        """
        choices = [[texts] if isinstance(texts, str) else texts for texts in captions]
        took = ScoringTime()
        owner = np.repeat(np.arange(len(choices)), [len(texts) for texts in choices])
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
            tokens = pool.submit(self.tokenizer, [text for texts in choices for text in texts])
            image_embedding = self.encode_images(images, on_batch, took)
            text_embedding = self._encode_tokens(tokens.result(), took)
        if len(image_embedding) != len(captions):
            raise ValueError(f"{len(image_embedding)} images for {len(captions)} captions")
        of_caption = image_embedding if len(owner) == len(choices) else image_embedding[owner]
        cosine = np.einsum("nd,nd->n", of_caption, text_embedding, dtype=np.float32)
        cosine = np.clip(cosine, -1.0, 1.0)
        best = best_of_each(cosine, owner)
        return Scores(
            clip_score=cosine[best],
            image_embedding=image_embedding,
            text_embedding=text_embedding[best],
            is_truncated=tokens.result().is_truncated[best],
            caption_index=best - np.searchsorted(owner, np.arange(len(choices))),
            took=took,
        )

    def encode_captions(
        self, captions: Sequence[str]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Returns the captions' embeddings (n, embed_dim) and whether each was truncated."""
        tokens = self.tokenizer(captions)
        return self._encode_tokens(tokens), tokens.is_truncated

    def _encode_tokens(
        self, tokens: Tokens, took: ScoringTime | None = None
    ) -> npt.NDArray[np.float32]:
        """Returns embeddings (n, embed_dim).

        Captions of similar length form a batch, so that little is spent on padding.
        """
        began = time.perf_counter()
        embeddings = np.zeros((len(tokens.ids), self._embedding_width), np.float32)
        order = np.argsort(tokens.lengths, kind="stable")
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            ids = self.text_tower.trim(tokens.ids[torch.from_numpy(rows)], tokens.lengths[rows])
            with self._lock:
                features, self._text_batch = encode_in_parts(
                    self._text_features, ids, self._text_batch
                )
            embeddings[rows] = features.cpu().numpy()
        if took is not None:
            took.model += time.perf_counter() - began
        return embeddings

    def encode_images(
        self,
        images: Iterable[ImageSource],
        on_batch: Callable[[int], None] | None = None,
        took: ScoringTime | None = None,
    ) -> npt.NDArray[np.float32]:
        """Returns the images' embeddings (n, embed_dim), in batches formed by position."""
        took = took or ScoringTime()
        batches = load_batches(
            images,
            self.preprocessor,
            self.config.batch_size,
            self.config.decode_threads or os.cpu_count() or 1,
            is_pinned=self.device.type == "cuda",
            took=took.feed,
        )
        features = list(self._run_ahead(batches, on_batch, took))
        if not features:
            return np.zeros((0, self._embedding_width), np.float32)
        return torch.cat(features).cpu().numpy()

    def _run_ahead(
        self,
        batches: Iterator[torch.Tensor],
        on_batch: Callable[[int], None] | None,
        took: ScoringTime | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yields the batches' features, still on the device, a few steps ahead of a GPU."""
        took = took or ScoringTime()
        done, running = 0, deque[Stopwatch]()
        for pixels in batches:
            count = len(pixels)
            missing = self.config.batch_size - count
            if self.config.compile_model and missing:  # one shape, one compilation
                pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing))  # rows are independent
            with self._lock:
                watch = Stopwatch(self.device)
                features = self.encode_pixels(pixels)
                watch.stop()
            running.append(watch)
            if len(running) > BATCHES_IN_FLIGHT or self.device.type != "cuda":
                took.model += running.popleft().seconds()
            yield features[:count]
            done += count
            if on_batch is not None:
                on_batch(done)
        took.model += sum(watch.seconds() for watch in running)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns unit image embeddings (B, D) of a batch of images made ready, on the device.

        Args:
            pixels: uint8 (B, height, width, 3), as `preprocessor` has them.
        """
        features, self._image_batch = encode_in_parts(
            self._image_features, pixels, self._image_batch
        )
        return features

    def model_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns uint8 pixels (B, height, width, 3) as the image tower takes them."""
        pixels = pixels.to(self.device, non_blocking=True)
        return self.preprocessor.normalize(pixels, self._memory_format).to(self._dtype)

    @torch.inference_mode()
    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns unit image embeddings (B, D) of pixels (B, height, width, 3)."""
        torch.set_num_threads(self.config.threads)
        features = self.image_tower(self.model_input(pixels))
        return F.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def _text_features(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns unit text embeddings (B, D) of token ids (B, L)."""
        torch.set_num_threads(self.config.threads)
        features = self.text_tower.encode(ids.to(self.device, non_blocking=True))
        return F.normalize(features.float(), dim=-1)


def images_at_once(config: ScoreConfig, device: torch.device) -> int:
    """Returns how many images of a batch go through the model together, if memory allows it."""
    if device.type != "cpu" or config.compile_model:  # compiled for one shape, which is a batch
        return config.batch_size
    return min(config.batch_size, IMAGES_AT_ONCE)


def best_of_each(
    score: npt.NDArray[np.float32], owner: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Returns where the highest score of each owner stands, of equal ones the first.

    Args:
        score: (m,); what is not finite is lower than all that is.
        owner: (m,), 0 to the last of them, ascending, none left out.
    """
    comparable = np.where(np.isfinite(score), score, -np.inf)
    order = np.lexsort((-comparable, owner))
    is_first = np.append(True, np.diff(owner) > 0)[: len(owner)]
    best: npt.NDArray[np.int64] = order[is_first]
    return best


def encode_in_parts(
    encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, size: int
) -> tuple[torch.Tensor, int]:
    """Returns the encoded batch, and how many rows at once fitted into memory.

    A part that does not fit is halved, and the size stays halved for what comes next. Another
    size can choose other kernels, so that scores then agree within rounding only; the size that
    fitted is recorded beside the scores.

    Raises:
        torch.OutOfMemoryError: if not even one row fits.
    """
    while True:
        try:
            return torch.cat([encode(part) for part in batch.split(size)]), size
        except torch.OutOfMemoryError:
            if min(size, len(batch)) == 1:
                raise
        size = max(1, min(size, len(batch)) // 2)
        torch.cuda.empty_cache()


def check_model(config: ScoreConfig, *, runs_here: bool = True) -> ModelIdentity:
    """Returns the identity of the model, once it was loaded and let go again, before work starts.

    Args:
        runs_here: whether the model will run on this machine, so that its device must be here.

    Raises:
        ConfigError: if it does not exist or cannot be loaded; the message says what to do.
    """
    if runs_here:
        require_device(config.device)
    config = with_precision(config)
    checkpoint = resolve_checkpoint(config)
    tokenizer = load_tokenizer(checkpoint, config)
    load_model(checkpoint, quick_to_check(config), torch.device("cpu"))
    _give_memory_back()
    return _identity(checkpoint, config, CaptionTokenizer(tokenizer, config.prompt_template))


def _give_memory_back() -> None:
    """Gives the memory of a model that was let go back to the system.

    The C library keeps what lies between blocks in use: 350 MB after ViT-B/32, for as long as the
    process that starts the workers lives.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


_identities: dict[ScoreConfig, ModelIdentity] = {}
_scorers: dict[ScoreConfig, ClipScorer] = {}
_load_lock = threading.Lock()


def model_identity(config: ScoreConfig) -> ModelIdentity:
    """Returns the identity of the model without loading it, read once in a process."""
    with _load_lock:
        if config not in _identities:
            exact = with_precision(config)
            checkpoint = resolve_checkpoint(exact)
            tokenizer = load_tokenizer(checkpoint, exact)
            captions = CaptionTokenizer(tokenizer, exact.prompt_template)
            _identities[config] = _identity(checkpoint, exact, captions)
        return _identities[config]


def shared_scorer(config: ScoreConfig) -> ClipScorer:
    """Returns this process's model; it is loaded once, and the one before it is let go."""
    with _load_lock:
        if config not in _scorers:
            _scorers.clear()
            _scorers[config] = ClipScorer(config)
        return _scorers[config]


def _identity(
    checkpoint: Checkpoint, config: ScoreConfig, captions: CaptionTokenizer
) -> ModelIdentity:
    return identify(checkpoint, config, captions(PROBE_CAPTIONS).ids.numpy().tobytes())


def _image_encoder(
    model: torch.nn.Module, config: ScoreConfig
) -> Callable[[torch.Tensor], torch.Tensor]:
    encode: Any = model.encode_image
    compiled: Callable[[torch.Tensor], torch.Tensor] = encode
    if config.compile_model:
        keep_kernels_apart()
        compiled = torch.compile(encode, dynamic=False)
    return compiled
