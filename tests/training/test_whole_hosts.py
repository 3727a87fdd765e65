"""Training over two hosts by the launchers, and what can go wrong between hosts.

`make hosts-test` runs it, as root and with iproute2. It takes minutes, so that `make test` leaves
it out, but for the loss of a host (test_hosts.py).
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

if not os.environ.get("ALIGNGPT_HOSTS_TEST"):
    pytest.skip("takes minutes: make hosts-test runs it", allow_module_level=True)

from tests.ray_cluster import has_namespaces
from tests.training.ranks import COMMAND, run_ranks
from tests.training.test_kills import is_logged
from tests.training.test_train import command_line, logged
from tests.training.two_hosts import Hosts, two_hosts

logger = logging.getLogger(__name__)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not has_namespaces(), reason="needs network namespaces: root and iproute2"),
]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture
def words(tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path) -> list[str]:
    """The options of a run that goes on until it is stopped."""
    words = command_line(tiny_parts, "pretrain", caption_dataset, tmp_path / "run")[len(COMMAND) :]
    return [*words, "--save-every-steps", "2", "--epochs", "5000"]


def ended(processes: list[Any]) -> list[int]:
    return [process.wait(timeout=900) for process in processes]


def wait_for_steps(out: Path, steps: int, processes: list[Any], logs: list[Path]) -> None:
    while not is_logged(out, steps):
        assert {p.poll() for p in processes} == {None}, [log.read_text() for log in logs]
        time.sleep(0.1)


def errors(log: Path) -> list[str]:
    """The lines of ours; launchers have their own."""
    return [line for line in log.read_text().splitlines() if line.startswith("error:")]


def start_both(
    hosts: Hosts, launcher: Callable[[int], list[str]], words: list[str], folder: Path
) -> tuple[list[Any], list[Path]]:
    logs = [folder / f"log-{number}" for number in (0, 1)]
    processes = [
        hosts.start([*launcher(number), *words], number, logs[number]) for number in (0, 1)
    ]
    return processes, logs


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_hosts_have_the_losses_of_one_with_as_many_processes(
    hosts: Hosts, words: list[str], tmp_path: Path, launcher: str, zero_stage: int
) -> None:
    words = [*words, "--parallel.zero-stage", str(zero_stage), "--max-steps", "6"]
    launchers: dict[str, Callable[[int], list[str]]] = {
        "torchrun": hosts.torchrun,
        "deepspeed": lambda number: hosts.deepspeed(number, tmp_path),
    }
    processes, logs = start_both(hosts, launchers[launcher], words, tmp_path)
    assert ended(processes) == [0, 0], [log.read_text() for log in logs]
    found = logged(tmp_path / "run", "train/loss")
    shutil.rmtree(tmp_path / "run")
    run_ranks([*COMMAND, *words], 2)
    assert len(found) == 6
    assert found == pytest.approx(logged(tmp_path / "run", "train/loss"), rel=1e-5)


def has_living_children(pid: int) -> bool:
    """Returns whether a process has children but such as it has not waited for yet."""
    try:
        children = psutil.Process(pid).children()
        return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_lost_ends_the_processes_of_the_other(
    hosts: Hosts, words: list[str], tmp_path: Path, lost: int
) -> None:
    """Whether or not it holds the rendezvous; two processes on each host.

    Torchrun itself waits for a rendezvous that is lost until the kernel gives its connection up.
    """
    words = [*words, "--parallel.lost-after-seconds", "10"]
    launcher = lambda number: hosts.torchrun(number, 2)  # noqa: E731
    processes, logs = start_both(hosts, launcher, words, tmp_path)
    wait_for_steps(tmp_path / "run", 4, processes, logs)
    start = time.monotonic()
    hosts.lose(lost)
    while processes[1 - lost].poll() is None and has_living_children(processes[1 - lost].pid):
        time.sleep(0.1)
    logger.info("the processes ended %.0f s after host %s was", time.monotonic() - start, lost)
    if lost == 0:
        hosts.kill(1)
    assert processes[1 - lost].wait(timeout=900) != 0
    [line] = errors(logs[1 - lost])
    assert f"on {hosts.names[lost]} is lost (its host did not answer for 10 s)" in line
    out = tmp_path / "run"
    steps = len(logged(out, "train/loss")) + 2
    assert (out / "checkpoints" / "latest").exists()
    run_alone = [*hosts.torchrun(1 - lost, 2), *words]
    run_alone[run_alone.index("--nnodes") + 1] = "1"
    run_alone[run_alone.index("--rdzv-endpoint") + 1] = f"{hosts.addresses[1 - lost]}:{hosts.port}"
    again = hosts.start(run_alone, 1 - lost, tmp_path / "again")
    wait_for_steps(out, steps, [again], [tmp_path / "again"])


def test_a_network_that_is_cut_for_a_minute_is_waited_out(
    hosts: Hosts, words: list[str], tmp_path: Path
) -> None:
    # After 60 s without an answer of its store torchrun would give up, whatever we do.
    patient = ("--rdzv-conf", "read_timeout=180")
    processes, logs = start_both(
        hosts, lambda number: hosts.torchrun(number, 1, *patient), words, tmp_path
    )
    out = tmp_path / "run"
    wait_for_steps(out, 4, processes, logs)
    hosts.network.cut(2)
    time.sleep(60)
    hosts.network.mend(2)
    start, steps = time.monotonic(), len(logged(out, "train/loss"))
    wait_for_steps(out, steps + 2, processes, logs)
    logger.info("two steps took %.0f s from when the network was back", time.monotonic() - start)


def test_a_process_that_is_stopped_for_longer_than_a_host_may_be_silent_is_not_lost(
    hosts: Hosts, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "--parallel.lost-after-seconds", "4"]
    processes, logs = start_both(hosts, hosts.torchrun, words, tmp_path)
    out = tmp_path / "run"
    wait_for_steps(out, 4, processes, logs)
    # `ip netns exec` and what follows became torchrun itself.
    [trainer] = psutil.Process(processes[1].pid).children()
    trainer.suspend()
    time.sleep(15)
    trainer.resume()
    wait_for_steps(out, len(logged(out, "train/loss")) + 2, processes, logs)


def test_hosts_that_do_not_share_the_runs_folder_are_refused(
    hosts: Hosts, words: list[str], tmp_path: Path
) -> None:
    private = [[*words], [*words]]
    for number in (0, 1):
        # A folder of the same name that is another one on each host.
        (tmp_path / f"disk-{number}").mkdir()
    (tmp_path / "mount").mkdir()
    mounted = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
    logs = [tmp_path / f"log-{number}" for number in (0, 1)]
    processes = []
    for number in (0, 1):
        words = [*hosts.torchrun(number), *private[number]]
        words[words.index("--out") + 1] = str(tmp_path / "mount" / "run")
        within = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
        within += [str(tmp_path / f"disk-{number}"), str(tmp_path / "mount")]
        processes.append(hosts.start([*within, *words], number, logs[number]))
    assert ended(processes) == [1, 1]
    for log in logs:
        [line] = errors(log)
        assert f"is another folder on {hosts.names[1]}" in line
    assert not (tmp_path / "disk-1" / "run").exists()


def test_hosts_with_other_settings_or_data_are_refused(
    hosts: Hosts, words: list[str], tmp_path: Path
) -> None:
    logs = [tmp_path / f"log-{number}" for number in (0, 1)]
    processes = [
        hosts.start([*hosts.torchrun(n), *words, "--seed", str(n)], n, logs[n]) for n in (0, 1)
    ]
    assert ended(processes) == [1, 1]
    for log in logs:
        assert "config.seed is 0 and 1" in log.read_text()


def test_a_master_port_that_is_taken_ends_the_first_host_at_once(
    hosts: Hosts, words: list[str], tmp_path: Path
) -> None:
    """DeepSpeed's launcher leaves the port to the first process."""
    held = f"import socket, time; s = socket.create_server(('', {hosts.port})); "
    held += "print('held', flush=True); time.sleep(3600)"
    holder = hosts.start(["python3", "-c", held], 0, tmp_path / "holder")
    while "held" not in (tmp_path / "holder").read_text():
        assert holder.poll() is None
        time.sleep(0.1)
    launcher = hosts.deepspeed(0, tmp_path)
    process = hosts.start([*launcher, *words], 0, tmp_path / "log")
    assert process.wait(timeout=900) != 0
    assert holder.poll() is None
    [line] = errors(tmp_path / "log")
    assert f"has port {hosts.port}" in line
