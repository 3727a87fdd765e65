"""The whole of aligngpt on real data, on one machine, without a model hub.

Serves the bundled pictures and some broken URLs on this machine, curates them, trains both stages
on the result, evaluates the model and asks it about a picture that it has not seen. Each step
prints the command it runs; run it again and what is done is not done twice.
"""

import argparse
import csv
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from demo_server import DemoServer
from demo_summary import Summary, print_summary

from schemas.terminal import Console

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
INSTRUCTIONS = HERE / "instructions"
BIN = Path(sys.executable).parent
ADDRESS = "127.0.0.1"
PORT = 8970
EVERY_NTH_IS_A_DUPLICATE = 40
STOPPED = 128 + signal.SIGTERM
"""Status of what SIGTERM stopped."""
Step = Callable[..., str]
"""Runs a command under a title; returns what it said, if that is an answer."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """One picture of the bundled corpus."""

    file: str
    caption: str
    split: str


def main() -> None:
    """Runs the demo."""
    arguments = parsed_arguments()
    console = Console(highlight=False)
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    stamps = read_stamps()
    seconds: dict[str, float] = {}

    def step(title: str, *command: str | Path) -> str:
        console.rule(f"[bold]{title}")
        words = [str(word) for word in command]
        shown = ["python" if word == sys.executable else short(word, out) for word in words]
        console.print(f"[dim]$ {' '.join(shown)}[/dim]", soft_wrap=True)
        started = time.monotonic()
        is_answer = words[1:2] == ["chat"]
        output = subprocess.PIPE if is_answer else None
        status, said = run_command(words, output)
        seconds[title] = time.monotonic() - started
        if status:
            why = ": SIGTERM; run the demo again to go on" if status == STOPPED else ""
            console.print(f"[red]The demo stops here: the command ended with {status}{why}.")
            sys.exit(status)
        return said.strip() if is_answer else ""

    started = time.monotonic()
    models = out / "models"
    assemble = HERE / "assemble_models.py"
    step("Assemble the models", sys.executable, assemble, "--out", models)
    held_out = [stamp for stamp in stamps if stamp.split == "validation"]
    curate_pairs(step, out, models, stamps, arguments.port)
    pack_instructions(step, out)
    step("Look into the dataset", BIN / "aligngpt-curate", "inspect", out / "curated")
    train(step, out, models)
    evaluate(step, out)
    look = (sys.executable, HERE / "demo_looks.py", "--model", out / "finetuned" / "model")
    held = ("--questions", out / "instructions_validation", "--pairs", out / "curated_validation")
    told = ("--yes-no", out / "evaluation" / "pope")
    step("See whether the model looks", *look, *held, *told, "--out", out / "looks")
    question = "What is in this picture?"
    picture = CORPUS / held_out[0].file
    chat = (BIN / "aligngpt-train", "chat", out / "finetuned" / "model")
    asking = ("--image", picture, "--prompt", question)
    answer = step("Ask about a held-out picture", *chat, *asking)
    console.print(answer)
    summary = Summary(
        out=out,
        seconds=seconds,
        total_seconds=time.monotonic() - started,
        picture=picture,
        caption=held_out[0].caption,
        question=question,
        answer=answer,
    )
    print_summary(console, summary)


def run_command(words: Sequence[str], output: int | None) -> tuple[int, str]:
    """Returns the status of a command, as a shell has it, and what it said to `output`.

    SIGTERM is passed on, so that it stops the command, which saves what it has, and the demo.
    """
    command = subprocess.Popen(words, stdout=output, text=True)
    was_asked = False

    def stop(*_: object) -> None:
        nonlocal was_asked
        was_asked = True
        command.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        said, _ = command.communicate()
    except KeyboardInterrupt:  # the terminal has sent it to the command, too
        with suppress(subprocess.TimeoutExpired):
            command.wait(timeout=10)
        raise
    finally:
        command.kill()
        signal.signal(signal.SIGTERM, before)
    status = command.returncode if command.returncode >= 0 else 128 - command.returncode
    return STOPPED if was_asked else status, said or ""


def curate_pairs(step: Step, out: Path, models: Path, stamps: list[Stamp], port: int) -> None:
    """Serves the pictures and curates them, those to train on and those held out."""
    site = f"http://{ADDRESS}:{port}"
    held_out = [stamp for stamp in stamps if stamp.split == "validation"]
    write_pairs(out / "pairs.tsv", demo_urls(stamps, site, dead_port()))
    write_pairs(out / "pairs_validation.tsv", [picture_url(site, stamp) for stamp in held_out])
    curate = (BIN / "aligngpt-curate", "curate", "--recipe", "demo")
    score = ("--score.model", f"local-dir:{models / 'demo_clip'}")
    ports = [str(number) for number in (80, 443, port, dead_port())]
    reach = ("--fetch.allow-networks", f"{ADDRESS}/32", "--fetch.allow-ports", *ports)
    with DemoServer(CORPUS, ADDRESS, port):
        pairs = ("--pairs", out / "pairs.tsv", "--out", out / "curated")
        step("Curate the pairs", *curate, *pairs, *score, *reach, "--workers", "2")
        pairs = ("--pairs", out / "pairs_validation.tsv", "--out", out / "curated_validation")
        edges = ("--levels.edges-from", out / "curated")
        step("Curate the held-out pairs", *curate, *pairs, *score, *reach, *edges)


def pack_instructions(step: Step, out: Path) -> None:
    """Packs the questions to train on and to hold out, and captions of shapes for stage 1."""
    curate = (BIN / "aligngpt-curate", "curate", "--recipe", "llava_instructions")
    images = ("--read.image-folder", HERE)
    for title, name, *more in (
        ("captions of shapes", "shape_captions", "--read.as-captions"),
        ("questions", "questions"),
        ("held-out questions", "instructions_validation"),
    ):
        pairs = ("--pairs", INSTRUCTIONS / f"{name}.json")
        step(f"Pack the {title}", *curate, *pairs, "--out", out / name, *images, *more)


def train(step: Step, out: Path, models: Path) -> None:
    """Runs both training stages."""
    step(
        "Pre-train: projector and level vectors",
        *(BIN / "aligngpt-train", "pretrain", "--recipe", "demo_pretrain"),
        *("--data", out / "curated", out / "shape_captions"),
        *("--data.validation-data", out / "curated_validation"),
        *("--model.language-model", models / "smollm2"),
        *("--model.vision-tower", f"timm:local-dir:{models}/vision_tower"),
        *("--out", out / "pretrained"),
    )
    step(
        "Fine-tune: the gate and the language model",
        *(BIN / "aligngpt-train", "finetune", "--recipe", "demo_finetune"),
        *("--data", out / "questions"),
        *("--data.validation-data", out / "instructions_validation"),
        *("--init", out / "pretrained" / "model", "--out", out / "finetuned"),
    )


def evaluate(step: Step, out: Path) -> None:
    """Asks the held-out yes-no questions, laid out as POPE is, also about other pictures."""
    folder = out / "benchmarks" / "pope"
    (folder / "coco").mkdir(parents=True, exist_ok=True)
    questions = (INSTRUCTIONS / "yes_no_validation.jsonl").read_text(encoding="utf-8")
    (folder / "coco" / "coco_pope_random.json").write_text(questions, encoding="utf-8")
    pictures = folder / "val2014"
    if not pictures.exists():
        pictures.symlink_to(HERE)
    step(
        "Evaluate: yes-no questions in POPE's format",
        *(BIN / "aligngpt-train", "evaluate", out / "finetuned" / "model"),
        *("--benchmarks", "pope", "--data", out / "benchmarks", "--out", out / "evaluation"),
        *("--control", "exchanged"),
    )


def parsed_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port of the demo's web site on {ADDRESS}"
    )
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, arguments.port))
        except OSError as error:
            parser.error(f"port {arguments.port} is not free ({error.strerror}): choose another")
    return arguments


def read_stamps() -> list[Stamp]:
    """Returns the bundled pictures."""
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        return [
            Stamp(row["file"], row["caption"], row["split"])
            for row in csv.DictReader(file, delimiter="\t")
        ]


def picture_url(site: str, stamp: Stamp) -> tuple[str, str]:
    """Returns the address of a picture, and its caption."""
    return f"{site}/{stamp.file}", stamp.caption


def demo_urls(stamps: list[Stamp], site: str, closed_port: int) -> list[tuple[str, str]]:
    """Returns the pairs to curate: the pictures, some of them twice, and what the web has too."""
    pictures = [stamp for stamp in stamps if stamp.split == "train"]
    rows = [picture_url(site, stamp) for stamp in pictures]
    again = pictures[::EVERY_NTH_IS_A_DUPLICATE]
    rows += [(f"{site}/{stamp.file}?again", stamp.caption) for stamp in again]
    rows += [(f"{site}/smaller/{stamp.file}", stamp.caption) for stamp in again]
    rows += [picture_url(site, stamp) for stamp in again[:5]]
    some = pictures[0].file
    rows += [(f"{site}/gone/{number}.png", f"a picture that is gone {number}") for number in "123"]
    rows += [(f"{site}/page/{number}.png", f"a page, not a picture {number}") for number in "123"]
    rows += [(f"{site}/truncated/{some}", "a picture that ends in the middle")]
    rows += [(f"{site}/redirect-to-private/1.png", "a door to the inner network")]
    rows += [(f"http://{ADDRESS}:{closed_port}/dead.png", "a picture behind a closed port")]
    rows += [("http://169.254.169.254/latest/meta-data", "the keys of the cloud machine")]
    rows += [("ftp://example.org/a.png", "another protocol"), (f"{site}/{some}", "")]
    return rows


def dead_port() -> int:
    """Returns a port that nothing listens on, the same in each run."""
    return PORT + 1


def write_pairs(path: Path, rows: list[tuple[str, str]]) -> None:
    """Writes a table of url and caption, unless it stands there already."""
    text = io.StringIO()
    table = csv.writer(text, "excel-tab", lineterminator="\n")
    table.writerow(["url", "caption"])
    table.writerows(rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text.getvalue():
        path.write_text(text.getvalue(), encoding="utf-8")


def short(word: str, out: Path) -> str:
    """Returns a path as the reader would type it."""
    for folder in (out.parent, HERE.parent):
        word = word.replace(f"{folder}/", "")
    return json.dumps(word) if " " in word else word


if __name__ == "__main__":
    main()
