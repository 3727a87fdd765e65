"""Executes the steps of docker/Dockerfile.curate in a folder, where no Docker engine runs.

It reads the Dockerfile itself, so that what is tried is what an engine would do: ARG, ENV, COPY,
RUN, USER, WORKDIR of the stage `curate`. As root:

    debootstrap --variant=minbase bookworm ROOT
    python docker/in_chroot.py ROOT --stage beam=FOLDER --arg TORCH_INDEX=

FOLDER stands for the image that a `COPY --from=` names, with the files at their paths. Afterwards
`python docker/in_chroot.py ROOT --run curate --help` starts the image's entry point, as its user.
What this machine needs to reach package registries (certificates, apt's and pip's settings) is lent
to the folder while the steps run.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile.curate"
STAGE = "curate"

LENT = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/apt/apt.conf.d",
    "/etc/apt/sources.list.d",
    "/usr/local/share/ca-certificates",
    "/etc/pip.conf",
    "/root/.config/pip/pip.conf",
)
"""Settings of this machine without which package registries may be out of reach."""

PASSED = re.compile(r"(PIP|UV|SSL|REQUESTS|CURL)_|.*_proxy$", re.IGNORECASE)
"""Variables for the same."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A line of a Dockerfile, those that it goes on in joined."""

    name: str
    text: str


@dataclass
class Container:
    """A folder with an image's files, and what the Dockerfile has said so far."""

    root: Path
    stages: dict[str, Path] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"

    def run(self, words: Sequence[str], lent: dict[str, str] | None = None) -> int:
        """Returns the exit status of a command in the folder, as the user that is set."""
        variables = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self.variables}
        if self.user != "root":
            variables["HOME"] = f"/home/{self.user}"
        settings = [f"{name}={value}" for name, value in (variables | (lent or {})).items()]
        # chroot looks the user up in the new root.
        enter = ["chroot", f"--userspec={self.user}", str(self.root), "env", "-i", *settings]
        shell = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        return subprocess.run([*enter, "sh", "-c", shell], check=False).returncode


def instructions(text: str, stage: str) -> list[Instruction]:
    """Returns the instructions of a stage, with those before the first FROM."""
    joined = re.sub(r"^[ \t]*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Instruction] = []
    current: str | None = None
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            current = rest.rpartition(" AS ")[2] if " AS " in rest else ""
        elif current == stage:
            found.append(Instruction(name, " ".join(rest.split())))
    return found


def execute(step: Instruction, box: Container, arguments: dict[str, str]) -> None:
    """Does what an instruction says.

    Raises:
        SystemExit: if a command of RUN fails, or the instruction is none of those known here.
    """
    if step.name == "ARG":
        name, _, default = step.text.partition("=")
        box.variables[name] = arguments.get(name, default)
    elif step.name == "ENV":
        for word in shlex.split(step.text):
            name, _, value = word.partition("=")
            path = box.variables.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
            box.variables[name] = value.replace("$PATH", f"{path}:/sbin:/bin")
    elif step.name == "COPY":
        copy(step.text.split(), box)
    elif step.name == "RUN":
        lent = {name: value for name, value in os.environ.items() if PASSED.match(name)}
        if box.run(["sh", "-c", step.text], lent):
            sys.exit(f"failed: RUN {step.text}")
    elif step.name == "USER":
        box.user = step.text
    elif step.name == "WORKDIR":
        box.folder = step.text
        (box.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif step.name not in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
        sys.exit(f"this script knows no {step.name}")


def copy(words: Sequence[str], box: Container) -> None:
    """Copies files of the repository, or of another stage, into the folder."""
    source_root = REPOSITORY
    if words[0].startswith("--from="):
        stage = words[0].removeprefix("--from=")
        if stage not in box.stages:
            sys.exit(f"COPY --from={stage}: say where its files are by --stage {stage}=FOLDER")
        source_root, words = box.stages[stage], words[1:]
    *sources, target = words
    for source in sources:
        found = source_root / source.lstrip("/")
        goal = box.root / target.lstrip("/")
        goal = goal / found.name if target.endswith("/") else goal
        goal.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(found, goal, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy(found, goal)


@contextlib.contextmanager
def lending(root: Path) -> Iterator[None]:
    """Lends the folder this machine's settings, /proc and /dev while the block runs."""
    lent = [path for path in map(Path, LENT) if path.exists()]
    kept = root / "lent"
    kept.mkdir()
    mounted = [(kind, root / kind) for kind in ("proc", "dev")]
    try:
        for path in lent:
            place = root / str(path).lstrip("/")
            if place.exists() or place.is_symlink():
                (kept / str(path).lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                place.rename(kept / str(path).lstrip("/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
        for kind, place in mounted:
            subprocess.run(["mount", "--rbind", f"/{kind}", str(place)], check=True)
            subprocess.run(["mount", "--make-rslave", str(place)], check=True)
        yield
    finally:
        for _, place in reversed(mounted):
            subprocess.run(
                ["umount", "--recursive", str(place)], check=False, stderr=subprocess.DEVNULL
            )
        for path in lent:
            place = root / str(path).lstrip("/")
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            before = kept / str(path).lstrip("/")
            if before.exists() or before.is_symlink():
                before.rename(place)
        shutil.rmtree(kept)


def entry_point(found: Sequence[Instruction]) -> list[str]:
    """Returns the words that an image of these instructions starts with."""
    (text,) = (step.text for step in found if step.name == "ENTRYPOINT")
    return [str(word) for word in json.loads(text)]


def main() -> None:
    """Executes the steps, or starts the entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder with a bare Debian 12")
    parser.add_argument("--stage", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--run", action="store_true", help="start the entry point with what follows"
    )
    words = sys.argv[1:]
    at = words.index("--run") + 1 if "--run" in words else len(words)
    given, rest = parser.parse_args(words[:at]), words[at:]
    stages = {name: Path(path) for name, _, path in (one.partition("=") for one in given.stage)}
    arguments = dict(one.split("=", 1) for one in given.arg)
    box = Container(given.root.absolute(), stages)
    found = instructions(DOCKERFILE.read_text(), STAGE)
    with lending(box.root):
        for step in found:
            if given.run and step.name in ("RUN", "COPY"):
                continue
            if not given.run:
                print(f"{step.name} {step.text}", flush=True)
            execute(step, box, arguments)
        if given.run:
            sys.exit(box.run([*entry_point(found), *rest]))


if __name__ == "__main__":
    main()
