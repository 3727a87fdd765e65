"""Model folders of others in, and ours out: the commands `import` and `export`."""

from pathlib import Path

from schemas.disk import written_whole
from schemas.errors import ConfigError
from training.config import AlignmentMode, PublishedForm
from training.data.conversations import VICUNA_V1
from training.model.projector import plain_type
from training.model.published.source import find_source
from training.model.published.stage_1 import (
    STAGE_1_FILE,
    STAGE_1_FILES,
    assemble_stage_1,
    find_stage_1,
    save_stage_1,
)
from training.model.published.weights import has_weights, load_published, save_published
from training.parts import load_folder, loading


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
    _check_free(out)
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
            f"{stage_1} is of stage 1, projector and level vectors alone: name the language model "
            "that it was trained with as --language-model"
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


def export_model(folder: str, out: str, *, form: PublishedForm, vision_tower: str) -> None:
    """Writes a model folder under the published names, in its own precision.

    Args:
        form: `aligngpt` or `llava` for a whole model; `stage_1` for projector and level vectors in
            one file.
        vision_tower: what the published code is to load as the tower.

    Raises:
        ConfigError: if the form has no place for this model's alignment, or `out` is not free.
    """
    _check_free(out)
    parts = load_folder(folder, "auto")
    mode = parts.model.config.alignment_mode
    if form == "llava" and mode != "none":
        raise ConfigError(
            f"LLaVA has no alignment vectors, but {folder} has alignment_mode {mode}: it would "
            "answer otherwise than it does; use --format aligngpt"
        )
    if form == "aligngpt" and mode == "none":
        raise ConfigError(f"{folder} has no alignment vectors: use --format llava")
    joined = parts.model.config.projector_type
    if joined != plain_type(joined):
        raise ConfigError(
            f"the published code reads every vector of an image, but {folder} has the connector "
            f"{joined}: its weights have no place there"
        )
    parts.model.projector.fold()
    parts.model.config.standardizes_features = False
    with written_whole(Path(out)) as aside:
        if form == "stage_1":
            aside.mkdir(parents=True)
            save_stage_1(parts.model, aside / STAGE_1_FILE)
        else:
            save_published(parts.model, parts.processor, str(aside), vision_tower=vision_tower)


def _check_free(out: str) -> None:
    place = Path(out)
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{out} is a file, a model is a folder: choose another --out")
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another --out")
