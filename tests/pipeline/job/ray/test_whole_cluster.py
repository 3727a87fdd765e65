"""A whole curation on a Ray cluster whose nodes share no disk: an S3 server is the store.

`make cluster-test` runs it: a head and two nodes, in network namespaces where this user may make
them. It takes minutes, so that `make test` leaves it out.
"""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'aligngpt[ray]'")
if not os.environ.get("ALIGNGPT_CLUSTER_TEST"):
    pytest.skip("takes minutes: make cluster-test runs it", allow_module_level=True)

from pipeline.dataset.progress import ProgressReader, ShardState
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import read_bytes
from tests.cluster_corpus import made_on_store, put_corpus, words_for
from tests.curations import finish, kill, start_words
from tests.ray_cluster import RayCluster, has_namespaces
from tests.stores import FaultyStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RayCluster]:
    """A head without CPUs, and two nodes, whose environment knows where the store is."""
    cluster = RayCluster(tmp_path_factory.mktemp("ray"), {}, in_namespaces=has_namespaces())
    store = FaultyStore(cluster.network.head)
    try:
        os.environ.update(store.environment)
        cluster.environment.update(store.environment)
        for _ in range(2):
            cluster.add_node(2)
        yield cluster
    finally:
        cluster.stop()
        store.stop()


@pytest.fixture(scope="module")
def words(cluster, tiny_clip) -> list[str]:
    """The command without its folder and runner: pairs and pictures of the corpus on the store."""
    put_corpus()
    return words_for(f"local-dir:{tiny_clip.folder}")


def start_on_ray(cluster: RayCluster, words: list[str], out: str, workers: int = 4):
    """Returns the running curation on the cluster."""
    runner = ["--runner", "ray", "--ray-address", cluster.address, "--workers", str(workers)]
    return start_words(["curate", *words, "--out", out, *runner], is_warm=False)


def states_of(out: str) -> list[ShardState]:
    return ProgressReader(DatasetLayout(out)).read()


def wait_for(process, out: str, stage: Stage) -> list[ShardState]:
    """Returns what is known of a stage's shards once it has begun."""
    while process.poll() is None:
        found = [state for state in states_of(out) if state.stage is stage]
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(finish(process))


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> dict[str, str]:
    """The bytes that one machine makes."""
    return made_by(start_words(["curate", *words, "--out", "s3://corpus/alone"]), "alone")


def made_by(process, name: str) -> dict[str, str]:
    """Returns the hash of every file of a dataset on the store, once its job has ended well."""
    status, said = finish(process)
    assert status == 0, said
    return made_on_store(name)


def test_an_undisturbed_cluster_makes_the_bytes_of_one_machine(cluster, words, alone):
    assert made_by(start_on_ray(cluster, words, "s3://corpus/calm"), "calm") == alone


def test_a_driver_that_dies_leaves_no_worker_that_writes(cluster, words, alone):
    """One of its workers is stopped, and goes on when the next driver is at work."""
    out = "s3://corpus/drivers"
    first = start_on_ray(cluster, words, out)
    workers = {state.process for state in wait_for(first, out, Stage.FETCH)}
    stopped = psutil.Process(max(workers))
    stopped.send_signal(signal.SIGSTOP)
    kill(first)
    second = start_on_ray(cluster, words, out)
    wait_for(second, out, Stage.SCORE)
    if stopped.is_running():
        stopped.send_signal(signal.SIGCONT)
        stopped.wait(60)
    assert made_by(second, "drivers") == alone


def test_a_cluster_that_loses_a_node_makes_the_bytes_of_one_machine(cluster, words, alone):
    out = "s3://corpus/loss"
    job = start_on_ray(cluster, words, out)
    wait_for(job, out, Stage.SCORE)
    cluster.kill_node(2)
    assert made_by(job, "loss") == alone


def test_a_node_off_the_network_is_done_without_and_writes_nothing_when_it_is_back(
    cluster, words, alone
):
    """Its workers live on: they find the fence of the next attempt, once they reach the store."""
    if not cluster.network.has_namespaces:
        pytest.skip("only a network of our own can be cut: needs root and iproute2")
    out, number = "s3://corpus/cut", cluster.add_node(2)
    job = start_on_ray(cluster, words, out)
    wait_for(job, out, Stage.SCORE)
    attempt = read_bytes(f"{out}/_run/attempt")
    cluster.network.cut(number)
    while job.poll() is None and read_bytes(f"{out}/_run/attempt") == attempt:
        time.sleep(0.5)
    cluster.network.mend(number)
    assert made_by(job, "cut") == alone
