"""Model folders of others in, and ours out: the commands `import` and `export`."""

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.disk import aside_of, written_whole
from schemas.errors import ConfigError
from training.config import AlignmentMode, PublishedForm
from training.data.conversations import VICUNA_V1
from training.model.config import AlignGPTConfig
from training.model.projector import plain_type
from training.model.published.card import write_card
from training.model.published.code_folder import save_with_code
from training.model.published.source import find_source
from training.model.published.stage_1 import (
    STAGE_1_FILE,
    STAGE_1_FILES,
    assemble_stage_1,
    find_stage_1,
    save_stage_1,
)
from training.model.published.to_llava_hf import check_exportable, save_llava_hf
from training.model.published.weights import has_weights, load_published, save_published
from training.parts import Assembled, load_folder, loading


def import_model(
    checkpoint: str,
    out: str,
    *,
    language_model: str | None,
    vision_tower: str | None,
    alignment_mode: AlignmentMode | None,
    revision: str | None = None,
) -> None:
    """Writes a checkpoint of AlignGPT, LLaVA or transformers' LLaVA as a model folder of ours.

    The weights keep the precision that most of them are stored in.

    Args:
        checkpoint: folder, or name on the hub, of the whole model; or of stage 1, or its file:
            projector and level vectors, to which `language_model` and the tower are added.
        revision: of a name on the hub.

    Raises:
        ConfigError: if it is no such checkpoint, or `out` is not free.
    """
    with _claimed(out):
        source = find_source(checkpoint, revision)
        folder = source.path
        stage_1 = find_stage_1(folder)
        if stage_1 is not None and language_model is not None:
            with loading("--language-model or --vision-tower", language_model):
                model, processor = assemble_stage_1(
                    stage_1,
                    language_model,
                    vision_tower=vision_tower,
                    alignment_mode=alignment_mode,
                    chat_template=VICUNA_V1,
                )
        elif language_model is not None:
            raise ConfigError(
                f"--language-model is for a file of stage 1, but {folder} has none of "
                f"{', '.join(STAGE_1_FILES)}"
            )
        elif stage_1 is not None and not has_weights(stage_1.parent):
            raise ConfigError(
                f"{stage_1} is of stage 1, projector and level vectors alone: name the language "
                "model that it was trained with as --language-model"
            )
        else:
            with loading("the checkpoint or its vision tower", str(folder)):
                model, processor = load_published(
                    folder,
                    vision_tower=vision_tower,
                    alignment_mode=alignment_mode,
                    chat_template=VICUNA_V1,
                )
        model.config.imported_from = source.name
        with written_whole(Path(out)) as aside:
            model.save_pretrained(aside)
            processor.save_pretrained(aside)


def export_model(
    folder: str,
    out: str,
    *,
    form: PublishedForm,
    vision_tower: str,
    evaluation: str | None = None,
) -> None:
    """Writes a model folder as others read it, in its own precision.

    Args:
        form: `aligngpt` or `llava` for a whole model; `stage_1` for projector and level vectors in
            one file; `hf` with its code, `llava_hf` as transformers' LLaVA.
        vision_tower: what the published code is to load as the tower.
        evaluation: folder whose results.md the card of `hf` and `llava_hf` has.

    Raises:
        ConfigError: if the form has no place for this model's alignment, or `out` is not free.
    """
    with _claimed(out):
        if evaluation is not None and not (Path(evaluation) / "results.md").is_file():
            raise ConfigError(f"{evaluation} has no results.md: give a folder of `evaluate --out`")
        parts = load_folder(folder, "auto")
        if form in ("hf", "llava_hf"):
            export_for_transformers(parts, folder, out, form=form, evaluation=evaluation)
            return
        mode = parts.model.config.alignment_mode
        if form == "llava" and mode != "none":
            raise ConfigError(
                f"LLaVA has no alignment vectors, but {folder} has alignment_mode {mode}: it would "
                "answer otherwise than it does; use --to aligngpt or --to hf"
            )
        if form == "aligngpt" and mode == "none":
            raise ConfigError(f"{folder} has no alignment vectors: use --to llava or --to hf")
        joined = parts.model.config.projector_type
        if joined != plain_type(joined):
            raise ConfigError(
                f"the published code reads every vector of an image, but {folder} has the "
                f"connector {joined}: its weights have no place there"
            )
        forget_places(parts.model.config)
        parts.model.projector.fold()
        parts.model.config.standardizes_features = False
        with written_whole(Path(out)) as aside:
            if form == "stage_1":
                aside.mkdir(parents=True)
                save_stage_1(parts.model, aside / STAGE_1_FILE)
            else:
                save_published(parts.model, parts.processor, str(aside), vision_tower=vision_tower)


def export_for_transformers(
    parts: Assembled, folder: str, out: str, *, form: PublishedForm, evaluation: str | None
) -> None:
    """Writes a folder that transformers opens: with the code of the model, or as LLaVA's."""
    has_code, config = form == "hf", copy.deepcopy(parts.model.config)
    forget_places(parts.model.config)
    if not has_code:
        check_exportable(config)
        parts.model.projector.fold()
        parts.model.config.standardizes_features = False
    with written_whole(Path(out)) as aside:
        write = save_with_code if has_code else save_llava_hf
        write(parts.model, parts.processor, aside)
        results = None if evaluation is None else Path(evaluation)
        write_card(aside, Path(folder), config, has_code=has_code, evaluation=results)


def forget_places(config: AlignGPTConfig) -> None:
    """Takes paths of this machine out of a config that is given to others; hub names stay."""
    for one in (config, config.text_config, config.vision_config):
        if Path(one._name_or_path or "").is_absolute():
            one._name_or_path = ""
    if config.imported_from is not None and Path(config.imported_from).is_absolute():
        config.imported_from = Path(config.imported_from).name


@contextmanager
def _claimed(out: str) -> Iterator[None]:
    """Keeps the place for a new folder, and the one where it is written before, for this process.

    Raises:
        ConfigError: if either is not free.
    """
    _check_free(out)
    aside = aside_of(Path(out))
    try:
        aside.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"{aside} stands there, where the folder is to be written before it gets its name: if "
            "no other export or import is at work, remove it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_free(out: str) -> None:
    place = Path(out)
    above = next(path for path in place.absolute().parents if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ConfigError(f"--out {out}: {above} is no folder that can be written to")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{out} is a file, a model is a folder: choose another --out")
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another --out")
