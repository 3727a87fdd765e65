"""Paths that are good in every process of a job, wherever it runs.

A worker has a folder of its own that relative paths would start from, and on a cluster a disk of
its own. What a job hands on is absolute; what is recorded with the dataset stays as it was typed.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.config import CurationConfig
from pipeline.read.inputs import InputFile
from schemas.shards import DatasetLayout
from schemas.storage import absolute_path, is_folder
from scoring.signals.names import parse_signals

LOCAL_MODEL = "local-dir:"


def absolute_layout(layout: DatasetLayout) -> DatasetLayout:
    """Returns the layout of the same dataset, whatever folder a process works in."""
    return DatasetLayout(absolute_path(layout.root))


def absolute_config(config: CurationConfig) -> CurationConfig:
    """Returns the configuration with each path of a file or folder as every process takes it."""
    read, fetch, levels = config.read, config.fetch, config.levels
    recaption = config.recaption
    return replace(
        config,
        read=replace(
            read,
            image_folder=_absolute_or_none(read.image_folder),
            deny_urls=tuple(map(absolute_path, read.deny_urls)),
            deny_hosts=tuple(map(absolute_path, read.deny_hosts)),
        ),
        fetch=replace(
            fetch,
            allow_folders=tuple(map(absolute_path, fetch.allow_folders)),
            deny_hashes=tuple(map(absolute_path, fetch.deny_hashes)),
            ca_file=_absolute_or_none(fetch.ca_file),
        ),
        score=replace(
            config.score,
            model=_absolute_model(config.score.model),
            pretrained=_absolute_weights(config.score.pretrained),
            signals=tuple(map(_absolute_signal, config.score.signals)),
        ),
        levels=replace(levels, edges_from=_absolute_or_none(levels.edges_from)),
        recaption=replace(recaption, model=_absolute_folder(recaption.model)),
    )


def absolute_inputs(files: Sequence[InputFile]) -> tuple[InputFile, ...]:
    """Returns the input files with their paths absolute; what they are known by stays."""
    return tuple(
        replace(
            file,
            path=absolute_path(file.path),
            image_folder=_absolute_or_none(file.image_folder),
            table=_absolute_or_none(file.table),
        )
        for file in files
    )


def model_paths(config: CurationConfig) -> tuple[str, ...]:
    """Returns the files and folders that the models are read from: that of the scores, signals."""
    paths = _clip_paths(config.score.model, config.score.pretrained)
    for spec in parse_signals(config.score.signals):
        if spec.kind == "clip":
            paths += _clip_paths(*spec.clip_model)
        elif spec.kind == "head" or (spec.kind == "itm" and is_folder(spec.argument)):
            paths.append(spec.argument)
    return tuple(paths)


def _clip_paths(model: str, pretrained: str) -> list[str]:
    """Returns the files and folders that a model of open_clip is read from; none of a name's."""
    if model.startswith(LOCAL_MODEL):
        return [model.removeprefix(LOCAL_MODEL)]
    weights = _weights_file(pretrained)
    return [path for path in (model if model.endswith(".json") else "", weights) if path]


def writer_paths(config: CurationConfig) -> tuple[str, ...]:
    """Returns the folder of the model that writes captions, if it is one."""
    model = config.recaption.model
    return (model,) if model is not None and is_folder(model) else ()


def _absolute_folder(model: str | None) -> str | None:
    """Returns the name of a model on the Hub as it is, that of a folder as an absolute path."""
    return absolute_path(model) if model is not None and is_folder(model) else model


def _absolute_or_none(path: str | None) -> str | None:
    return None if path is None else absolute_path(path)


def _absolute_model(name: str) -> str:
    if name.startswith(LOCAL_MODEL):
        return LOCAL_MODEL + absolute_path(name.removeprefix(LOCAL_MODEL))
    return absolute_path(name) if name.endswith(".json") else name


def _absolute_signal(spelled: str) -> str:
    """Returns a signal as it is, but for the paths of a head or a model."""
    (spec,) = parse_signals((spelled,))
    if spec.kind == "head":
        return f"{spec.name}=head:{absolute_path(spec.argument)}"
    if spec.kind == "itm" and is_folder(spec.argument):
        return f"{spec.name}=itm:{absolute_path(spec.argument)}"
    if spec.kind == "clip":
        model, pretrained = spec.clip_model
        of_checkpoint = f"/{_absolute_weights(pretrained)}" if pretrained else ""
        return f"{spec.name}=clip:{_absolute_model(model)}{of_checkpoint}"
    return spelled


def _absolute_weights(pretrained: str) -> str:
    """Returns a checkpoint's tag as it is, the path of a file of weights as an absolute one."""
    file = _weights_file(pretrained)
    return pretrained.removesuffix(file) + absolute_path(file) if file else pretrained


def _weights_file(pretrained: str) -> str:
    """Returns the path in `TAG:FILE` or `FILE`; "" where a tag stands alone. Tags have no dots."""
    tag, colon, file = pretrained.partition(":")
    if colon:
        return file
    return tag if "/" in tag or "." in tag else ""
