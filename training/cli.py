"""The command `aligngpt-train`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from schemas.arithmetic import keep_products_reproducible
from schemas.command_line import print_commands, print_error, value_of
from schemas.disk import is_out_of_room, refusal_in_words
from schemas.errors import ConfigError, DatasetError, LossNotFinite, PeerLost, StorageError
from schemas.memory import keep_freed_memory, large_imports
from schemas.options import parse_options
from schemas.progress import at_work, is_first_process
from schemas.terminal import Console, prepare_output
from training.chat.commands import Chat
from training.config import AlignmentMode, PublishedForm, TrainConfig
from training.engine.launch import (
    STATUS_TERMINATED,
    EarlySigterm,
    hearing,
    is_peer_lost,
    launch,
)
from training.evaluation.commands import EVALUATION_COMMANDS, Compare, Evaluate, Score
from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, finetune_7b, pretrain_7b
from training.serve.commands import Serve

if TYPE_CHECKING:
    from training.evaluation.control import Difference

MORE_HELP = (
    f"Recipes of pretrain: {', '.join(PRETRAIN_RECIPES)}.\n"
    f"Recipes of finetune: {', '.join(FINETUNE_RECIPES)}.\n"
    "Each command explains its options: aligngpt-train COMMAND --help"
)
STATUS_FAILED = 1
STATUS_REFUSED = 2
STATUS_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What both stages take."""

    data: tuple[str, ...]
    """Dataset folders, as aligngpt-curate writes them; several are mixed."""
    out: str
    """Folder of the run: checkpoints, metrics and at the end the model. A run that stopped there
    goes on."""
    recipe: str | None = None
    """Complete configuration to start from; the other flags override it."""
    processes: int = 1
    """Training processes on this machine, one for each GPU; torchrun sets its own."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"--processes must be at least 1, got {self.processes}")


@dataclass(frozen=True, kw_only=True)
class Pretrain(TrainOptions):
    """Stage 1: projector and level vectors learn from captioned pictures."""

    init: str | None = None
    """Model folder to start from instead of pretrained parts."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=pretrain_7b)


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainOptions):
    """Stage 2: gate, projector and language model learn from conversations."""

    init: str
    """Model folder that stage 1 wrote: OUT/model of its run."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=finetune_7b)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a checkpoint of AlignGPT, LLaVA-1.5 or llava-hf into a model folder."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder, or name on the Hugging Face hub, with config.json, tokenizer and weights; or of stage
    1, with mm_projector_align.bin or mm_projector.bin, or that file."""
    out: str
    """Folder to write to."""
    language_model: str | None = None
    """Folder or name of the language model that a file of stage 1 was trained with."""
    vision_tower: str | None = None
    """Folder or name of the tower; by default what the checkpoint's config.json names."""
    alignment_mode: AlignmentMode | None = None
    """By default what the weights are for: adaptive with a gate, none without level vectors."""
    revision: str | None = None
    """Branch, tag or commit of a name on the hub; the commit is recorded in the model's config."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model folder as others read it: published code, transformers, servers of LLaVA."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model folder."""
    out: str
    """Folder to write to."""
    form: Annotated[PublishedForm, tyro.conf.arg(name="format", aliases=["--to"])] = "aligngpt"
    """For the published code aligngpt, llava (alignment mode none), or stage_1, which is
    mm_projector_align.bin; hf for transformers, with the code and a card (any model); llava_hf for
    transformers' LLaVA and what serves it (modes none, global and average)."""
    evaluation: str | None = None
    """Folder of `evaluate --out` whose table goes into the card of hf and llava_hf."""
    vision_tower: str = "openai/clip-vit-large-patch14-336"
    """Name of the tower that the published code is to load."""


Command = Pretrain | Finetune | Evaluate | Score | Compare | Chat | Serve | Import | Export

COMMANDS: dict[str, type[Command]] = {
    "pretrain": Pretrain,
    "finetune": Finetune,
    **EVALUATION_COMMANDS,
    "chat": Chat,
    "serve": Serve,
    "import": Import,
    "export": Export,
}


def main() -> None:
    """Runs the command line; it ends with 0, 1 (failed), 2 (refused) or 143 (SIGTERM)."""
    prepare_output()
    # Threads that spin while they wait steal the core from the thread that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_products_reproducible()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Returns the exit status of a command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print_commands("aligngpt-train COMMAND [OPTIONS]", COMMANDS, MORE_HELP)
        return 0
    try:
        return execute(parse(arguments), arguments)
    except (ConfigError, DatasetError) as error:
        print_error(str(error))
        return STATUS_REFUSED
    except (LossNotFinite, PeerLost, StorageError) as error:
        print_error(str(error))
        return STATUS_FAILED
    except (OSError, RuntimeError) as error:
        said = failure_in_words(error, what_stays(arguments))
        if said is None:
            raise
        print_error(said)
        return STATUS_FAILED
    except KeyboardInterrupt:
        stays = what_stays(arguments)
        print_error(f"stopped{stays}: run the same command again to go on" if stays else "stopped")
        return STATUS_INTERRUPTED


def what_stays(arguments: Sequence[str]) -> str:
    """Returns, after a semicolon, what a command that breaks off leaves to go on from, or nothing.

    Args:
        arguments: of the command line.
    """
    if arguments[0] in ("pretrain", "finetune"):
        return "; the last checkpoint stays"
    if arguments[0] == "evaluate" and "--benchmarks" in arguments:
        return "; what was answered stays"
    return ""


def failure_in_words(error: Exception, stays: str) -> str | None:
    """Returns what to say of an error that comes from outside; None if it is not known to.

    Args:
        stays: as `what_stays` gives it.
    """
    if is_out_of_room(error):
        return f"{error}: make room, or choose another disk, and run the same command again{stays}"
    if is_peer_lost(error):
        return (
            f"process {os.environ['RANK']}: another process of this run died or cannot be reached "
            f"any more ({str(error).splitlines()[0]}); what it said last says why. The last "
            "checkpoint stays: run the same command again to go on"
        )
    return refusal_in_words(error)


def parse(arguments: Sequence[str]) -> Command:
    """Returns the command that the arguments name, its defaults taken from the recipe.

    Raises:
        ConfigError: if there is no such command or recipe, or a setting is not allowed.
    """
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}: use one of {', '.join(COMMANDS)}")
    command: Any = COMMANDS[name]
    defaults: dict[str, Any] = {}
    if command in (Pretrain, Finetune):
        defaults = {"data": tyro.MISSING, "out": tyro.MISSING, "config": recipe_of(command, rest)}
        if command is Finetune:
            defaults["init"] = tyro.MISSING
    default = command(**defaults) if defaults else None
    parsed: Command = parse_options(command, rest, f"aligngpt-train {name}", default)
    return parsed


def recipe_of(command: type, arguments: Sequence[str]) -> TrainConfig:
    """Returns the configuration that the flags override.

    Raises:
        ConfigError: if there is no such recipe.
    """
    recipes = PRETRAIN_RECIPES if command is Pretrain else FINETUNE_RECIPES
    name = value_of(arguments, "--recipe") or next(iter(recipes))
    if name not in recipes:
        raise ConfigError(f"no recipe {name!r} for this stage: use one of {', '.join(recipes)}")
    return recipes[name]()


def execute(command: Command, arguments: Sequence[str]) -> int:
    """Returns the exit status of a parsed command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    is_launched = "RANK" in os.environ
    if isinstance(command, Pretrain | Finetune) and command.processes > 1 and not is_launched:
        return launch(command.processes, arguments)
    if isinstance(command, Pretrain | Finetune):
        with hearing(EarlySigterm()):
            return train_stage(command)
    if isinstance(command, Score | Compare) or (isinstance(command, Evaluate) and command.list):
        from training.evaluation.faces import show

        show(command)
        return 0
    from training.engine.deepspeed import name_accelerator

    name_accelerator()
    if isinstance(command, Chat):
        from training.chat.terminal import chat

        return chat(command)
    if isinstance(command, Serve):
        return serve_model(command)
    if isinstance(command, Evaluate):
        return evaluate(command, arguments)
    return exchange(command)


def serve_model(command: Serve) -> int:
    """Puts a model behind an address until it is told to end."""
    try:
        with at_work("starting"):
            from training.serve.run import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs packages that are not installed ({error.name}): pip install "
            "'aligngpt[train,serve]'"
        ) from error
    return serve(command)


def train_stage(command: Pretrain | Finetune) -> int:
    """Trains, prints where to look now, and returns 0, or 143 if SIGTERM stopped it."""
    with at_work("starting"), large_imports():
        import torch

        from training.engine.deepspeed import name_accelerator
        from training.train import train

    name_accelerator()
    if not torch.cuda.is_available():
        keep_freed_memory()
    is_complete = train(command.config, command.data, command.out, command.init)
    if is_first_process():
        print_outcome(command.out, is_complete)
    return 0 if is_complete else STATUS_TERMINATED


def exchange(command: Import | Export) -> int:
    """Turns one form of model folder into another and prints where it is."""
    with at_work("starting"), large_imports():
        from training.exchange import export_model, import_model

    tower = command.vision_tower
    if isinstance(command, Import):
        source = command.checkpoint
        with at_work(f"importing {source}", into=Path(command.out), num_bytes=weight_bytes(source)):
            import_model(
                command.checkpoint,
                command.out,
                language_model=command.language_model,
                vision_tower=tower,
                alignment_mode=command.alignment_mode,
                revision=command.revision,
            )
    else:
        assert tower is not None
        source = command.model
        num_bytes = 0 if command.form == "stage_1" else weight_bytes(source)
        with at_work(f"exporting {source}", into=Path(command.out), num_bytes=num_bytes):
            export_model(
                source,
                command.out,
                form=command.form,
                vision_tower=tower,
                evaluation=command.evaluation,
            )
    Console().print(f"written: {command.out}")
    return 0


def weight_bytes(folder: str) -> int:
    """Returns the size of the weights in a folder; 0 if it is not on this machine."""
    files = [file for kind in ("safetensors", "bin") for file in Path(folder).glob(f"*.{kind}")]
    return sum(file.stat().st_size for file in files)


def evaluate(command: Evaluate, arguments: Sequence[str]) -> int:
    """Measures a model on benchmarks, or prints its loss on a dataset."""
    if command.benchmarks:
        with at_work("starting"), large_imports():
            from training.evaluation.evaluate import evaluate_benchmarks

        return evaluate_benchmarks(command, arguments)
    if command.precision == "fp16":
        raise ConfigError("--precision fp16 is for --benchmarks: a loss is taken in bf16 or fp32")
    with at_work("starting"), large_imports():
        from training.evaluation.dataset_loss import dataset_loss
        from training.evaluation.level_figure import print_levels, write_levels

    totals, difference, found = dataset_loss(
        command.model,
        command.data,
        form=command.form,
        tokens_per_sequence=command.tokens_per_sequence,
        samples=command.samples,
        control=command.control,
        precision=command.precision,
        told_levels=command.told_level,
    )
    table = Table("alignment level", "loss", "target tokens")
    for level, loss in totals.level_losses.items():
        table.add_row(str(level), f"{loss:.4f}", f"{totals.level_counts[level]:,.0f}")
    table.add_row("all", f"{totals.loss:.4f}", f"{totals.targets:,.0f}")
    Console().print(table)
    if difference is not None:
        print_control(difference)
    if found is not None:
        print_levels(found)
        if command.out:
            write_levels(found, Path(command.out))
    return 0


def print_control(found: "Difference") -> None:
    """Prints what the pictures are worth to a model."""
    from training.evaluation.control import in_words

    table = Table("pictures", "loss", "95 % interval", title=f"{found.samples:,} samples")
    table.add_row("their own", f"{found.right:.4f}", "")
    table.add_row("exchanged", f"{found.exchanged:.4f}", "")
    interval = f"{found.low:+.4f} to {found.high:+.4f}"
    table.add_row("difference", f"{found.difference:+.4f}", interval)
    console = Console()
    console.print(table)
    console.print(in_words(found), highlight=False)


def print_outcome(out: str, is_complete: bool) -> None:
    """Prints where to look now."""
    console = Console()
    if is_complete:
        drawn = [f"{out}/{name}" for name in ("loss.png", "levels.png")]
        pictures = ", ".join(path for path in drawn if Path(path).exists())
        console.print(
            f"model: {out}/model   metrics: {out}/metrics.jsonl   pictures: {pictures or 'none'}"
        )
    else:
        console.print("stopped by SIGTERM, checkpoint saved: run the same command again to go on")


if __name__ == "__main__":
    main()
