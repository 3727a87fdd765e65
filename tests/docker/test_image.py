"""The image's steps: each file they name is there, each version is the lock's, each runs."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.curations import COMMAND, ROOT
from tests.test_architecture import loaded

DOCKER = ROOT / "docker"
in_chroot = loaded(DOCKER / "in_chroot.py")
TEXT = (DOCKER / "Dockerfile.curate").read_text()
STEPS = in_chroot.instructions(TEXT, "curate")


def pinned(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return pinned(DOCKER / "requirements.lock")


def texts(name: str) -> list[str]:
    return [step.text for step in STEPS if step.name == name]


def test_every_file_that_is_copied_is_there_and_every_step_too():
    for stage in ("curate", "flex"):
        for step in in_chroot.instructions(TEXT, stage):
            if step.name == "COPY" and not step.text.startswith("--from="):
                *sources, _ = step.text.split()
                assert [name for name in sources if not (ROOT / name).exists()] == []
    script = (DOCKER / "install.sh").read_text()
    steps = [text.removeprefix("sh /opt/aligngpt/docker/install.sh ") for text in texts("RUN")]
    assert steps == ["system", "packages", "program", "model", "check"]
    assert [step for step in steps if f"\n{step}() {{\n" not in script] == []


def test_what_is_built_by_default_is_no_root_and_tells_its_health():
    assert TEXT.rstrip().endswith("\nFROM curate")
    assert texts("USER") == ["aligngpt"]
    assert len(texts("HEALTHCHECK")) == 1
    assert in_chroot.entry_point(STEPS) == ["sh", "/opt/aligngpt/docker/entrypoint.sh"]


def test_versions_are_those_of_the_lock(lock):
    whole = pinned(ROOT / "requirements.lock")
    assert {name: lock[name] for name in lock.keys() & whole} == {
        name: whole[name] for name in lock.keys() & whole
    }, "run: make lock"
    assert f"FROM apache/beam_python3.11_sdk:{lock['apache-beam']} AS beam\n" in TEXT
    assert f"\nUV={whole['uv']}\n" in (DOCKER / "install.sh").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["curate"], *extras["ray"], *extras["gcp"]]
    names = {re.split(r"[\[<>=!~ ]", word)[0].replace("_", "-").lower() for word in wanted}
    assert names <= lock.keys(), "run: make lock"


def test_the_cpu_variant_leaves_out_what_only_torchs_cuda_build_needs(lock, tmp_path):
    text = (DOCKER / "requirements.lock").read_text()
    done = subprocess.run(
        ["sh", DOCKER / "install.sh", "without_cuda"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "kept.lock").write_text(done.stdout)
    left_out = lock.keys() - pinned(tmp_path / "kept.lock").keys()
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= left_out
    assert not {name for name in left_out if name.endswith("-cu12")}
    assert {"faiss-gpu", "nvidia-cublas-cu12"} & left_out == set()
    entries = re.findall(
        r"^\S+==\S+ \\\n(?:    --hash=sha256:\S+(?: \\)?\n)+", done.stdout, re.MULTILINE
    )
    assert len(entries) == len(lock) - len(left_out)


def test_the_entry_point_starts_what_its_first_word_says():
    def start(*words: str) -> subprocess.CompletedProcess[str]:
        path = f"{COMMAND.parent}:/usr/bin:/bin"
        command = ["sh", str(DOCKER / "entrypoint.sh"), *words]
        environment = {"PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert start("sh", "-c", "echo $0 here").stdout == "sh here\n"
    assert "aligngpt-curate COMMAND" in start().stdout
    for flag in ("--id=1-1", "--worker_pool"):
        worker = start(flag, "--control_endpoint=x")
        assert (worker.returncode, "/opt/apache/beam/boot" in worker.stderr) == (127, True)


def test_without_an_engine_copies_and_variables_are_as_with_one(tmp_path):
    (tmp_path / "stage" / "opt" / "apache" / "beam").mkdir(parents=True)
    (tmp_path / "stage" / "opt" / "apache" / "beam" / "boot").write_text("boot")
    box = in_chroot.Container(tmp_path / "root", {"beam": tmp_path / "stage"})
    for step in STEPS:
        if step.name != "RUN":
            in_chroot.execute(step, box, {"VARIANT": "gpu"})
    program = tmp_path / "root" / "opt" / "aligngpt"
    assert (program / "pipeline" / "cli.py").read_bytes() == (ROOT / "pipeline/cli.py").read_bytes()
    assert (program / "LICENSE").is_file()
    assert (tmp_path / "root/opt/apache/beam/boot").read_text() == "boot"
    assert not list(program.rglob("__pycache__"))
    assert box.variables["VARIANT"] == "gpu"
    assert box.variables["PATH"].startswith("/opt/venv/bin:/usr/local/sbin:")
    assert (box.user, box.folder) == ("aligngpt", "/home/aligngpt")


def test_a_stage_that_is_not_given_is_asked_for(tmp_path):
    box = in_chroot.Container(tmp_path)
    with pytest.raises(SystemExit, match="say where its files are by --stage beam=FOLDER"):
        in_chroot.copy(["--from=beam", "/x", "/y"], box)
