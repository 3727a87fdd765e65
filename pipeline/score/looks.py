"""Signals of models that look at the pictures: a further CLIP, or one that is asked about pairs.

A model is loaded once in a process, when the first shard needs it; each signal of this kind has a
pass over the pictures of its own.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.fetched_rows import fetched_rows
from pipeline.dataset.tars import read_images
from pipeline.score.exchanges import exchanged_cosines
from schemas.errors import ConfigError
from schemas.memory import large_imports
from schemas.shards import DatasetLayout
from scoring.config import Precision, ScoreConfig
from scoring.control import Exchange
from scoring.devices import with_precision
from scoring.signals.names import SignalSpec

COSINE_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}
"""Largest difference that other batch-mates, threads or processors may make of a cosine.

Source: benchmarks/rescore.py: of the demonstration CLIP's scores of the corpus, computed again with
other batch-mates and another instruction set, the largest difference was 3.1e-3 in bf16, with a
mean of 7.3e-4, of which 5e-3 is seven times, and 2.3e-7 in fp32, where 1e-4 leaves room for
deeper models and for GPUs. fp16 rounds finer than bf16.
"""

SIGNAL_TOLERANCE = 1e-4
"""Largest difference of a signal, relative to values above 1, that is computed from the same stored
embeddings, so that only the order of sums can differ."""

LIKELIHOOD_TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference of a likelihood that other batch-mates, threads or processors may make.

Source: benchmarks/itm.py by the demo's finetuned model (docs/signals.md): 2e-6 in fp32, 0.022 in
bf16. fp16 is presumed: logits of about 20 are told to 0.01 there, to 0.08 in bf16, and a likelihood
moves by a quarter of what its logit does.
"""


def clip_config(spec: SignalSpec, config: ScoreConfig) -> ScoreConfig:
    """Returns the configuration of the model of a `clip`: as the dataset's, but for the model."""
    model, pretrained = spec.clip_model
    return dataclasses.replace(
        _without_signals(config), model=model, pretrained=pretrained or ScoreConfig().pretrained
    )


def check_look(spec: SignalSpec, config: ScoreConfig, *, runs_here: bool) -> None:
    """Raises `ConfigError` where the model of a signal cannot be loaded, before work starts."""
    with large_imports():
        from scoring.clip.scorer import check_model
        from scoring.itm.likelihood import check_judge
    if spec.kind == "clip":
        check_model(clip_config(spec, config), runs_here=runs_here)
    else:
        check_judge(spec.argument, _without_signals(config), runs_here=runs_here)


def look_identity(spec: SignalSpec, config: ScoreConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what tells a signal of a model from another, and what else to record of its making.

    Raises:
        ConfigError: if the model is not to be had.
    """
    with large_imports():
        from scoring.clip.checkpoints import deciding_identity
        from scoring.clip.scorer import model_identity
        from scoring.itm.likelihood import judge_model
        from scoring.itm.model import itm_identity, itm_versions
    exact = with_precision(config)
    if spec.kind == "clip":
        identity = model_identity(clip_config(spec, exact))
        deciding = deciding_identity(identity)
        deciding = {**deciding, "batch_size": str(exact.batch_size), "threads": str(exact.threads)}
        return deciding, {"versions": json.dumps(_versions(identity), sort_keys=True)}
    asked = {
        "prompt": exact.itm_prompt,
        "batch_size": str(exact.itm_batch_size),
        "precision": exact.precision,
        "threads": str(exact.threads),
    }
    versions = json.dumps(itm_versions(), sort_keys=True)
    return {**itm_identity(judge_model(spec.argument, config)), **asked}, {"versions": versions}


def look_description(spec: SignalSpec, config: ScoreConfig) -> str:
    """Returns what the schema says of a signal of a model."""
    if spec.kind == "clip":
        return f"cosine of image and caption by {spec.argument}, in [-1, 1]"
    last = spec.argument.rstrip("/").rsplit("/", 1)[-1]
    return f"likelihood of yes against no by {last}, asked: {config.itm_prompt}"


def look_values(
    spec: SignalSpec,
    layout: DatasetLayout,
    shard: int,
    keys: pa.ChunkedArray,
    captions: Sequence[str],
    config: ScoreConfig,
    exchange: Exchange | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Returns a signal of a model for some pairs of a shard, in the order of its table, (n,).

    Beside it, of a `clip`, that of exchanged pairs, where there are: (m, EXCHANGES).

    Args:
        exchange: of the first m pairs.
    """
    with large_imports():
        from scoring.clip.scorer import shared_scorer
        from scoring.itm.likelihood import shared_judge
    formats = fetched_rows(layout, shard, keys, ["image_format"])["image_format"].to_pylist()
    images = read_images(layout, shard, keys.to_pylist(), formats)
    if spec.kind == "clip":
        scorer = shared_scorer(with_precision(clip_config(spec, config)))
        scores = scorer.score(images, list(captions))
        if exchange is None:
            return scores.clip_score, None
        embeddings = scores.image_embedding, scores.text_embedding
        return scores.clip_score, exchanged_cosines(*embeddings, exchange)
    exact = with_precision(_without_signals(config))
    return shared_judge(spec.argument, exact).likelihoods(images, captions), None


def look_tolerance(spec: SignalSpec, config: ScoreConfig) -> float:
    """Returns how far a signal that is computed again may be from the stored one."""
    if not spec.looks_at_pictures:
        return SIGNAL_TOLERANCE
    tolerances = COSINE_TOLERANCES if spec.kind == "clip" else LIKELIHOOD_TOLERANCES
    return tolerances[with_precision(config).precision]


def config_of(made: dict[str, str], config: ScoreConfig) -> ScoreConfig:
    """Returns the configuration that a stored signal of a model was made with.

    Args:
        made: what its field says.
        config: of the dataset's scores.

    Raises:
        ConfigError: if it was made by code that may not run.
    """
    if made["kind"] != "itm":
        return config
    if made.get("trust_remote_code") and not config.itm_trust_remote_code:
        raise ConfigError(
            f"itm:{made['argument']} ran code of its own when its signal was made: if you trust "
            "it, pass --itm-trust-remote-code"
        )
    # What the model ran then it runs now, and no more, whatever else may.
    config = dataclasses.replace(config, itm_trust_remote_code=bool(made.get("trust_remote_code")))
    return dataclasses.replace(
        config, itm_prompt=made["prompt"], itm_batch_size=int(made["batch_size"])
    )


def _without_signals(config: ScoreConfig) -> ScoreConfig:
    return dataclasses.replace(config, signals=())


def _versions(identity: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in identity.items() if name.startswith("version.")}
