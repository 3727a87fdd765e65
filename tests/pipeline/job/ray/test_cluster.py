"""Where workers go on a cluster, worked out without one."""

import sys

import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'aligngpt[ray]'")

from pipeline.job.ray.cluster import (
    Node,
    WorkerNeeds,
    connect,
    find_places,
    refuse_secrets,
    shortage,
)
from schemas.errors import ConfigError


def node(name: str, cpus: float, gpus: float = 0, memory_bytes: float = 2**33) -> Node:
    return Node(id=name, address=name, cpus=cpus, memory_bytes=memory_bytes, gpus=gpus)


def test_workers_are_spread_over_the_nodes_without_gpus():
    places = find_places([node("a", 4), node("b", 4), node("g", 8, 2)], 4, 0, WorkerNeeds())
    assert sorted(places.without_gpu) == ["a", "a", "b", "b"]
    assert places.with_gpu == ()


def test_workers_with_a_gpu_have_one_each_and_the_others_come_there_last():
    places = find_places([node("a", 2), node("g", 4, 2)], 9, 8, WorkerNeeds())
    assert places.with_gpu == ("g", "g")
    assert sorted(places.without_gpu) == ["a", "a", "g", "g"]


def test_a_node_holds_as_many_workers_as_it_has_memory_and_cpus_for():
    needs = WorkerNeeds(cpus=2, memory_bytes=2**32)
    nodes = [node("small", 64, memory_bytes=2**33), node("odd", 3, memory_bytes=2**40)]
    assert sorted(find_places(nodes, 64, 0, needs).without_gpu) == ["odd", "small", "small"]


def test_a_cluster_that_is_too_small_is_told_with_what_it_has():
    nodes, needs = [node("a", 3), node("g", 1, 1)], WorkerNeeds(memory_bytes=2**30)
    said = shortage(find_places(nodes, 64, 8, needs), 64, 8, needs, 2)
    assert said == (
        "The cluster's 2 nodes have room for 3 workers of 1 CPUs and 1.0 GiB (64 asked for) and "
        "1 workers with a GPU of 1 CPUs and 1.0 GiB (8 asked for): going on with those."
    )
    assert shortage(find_places(nodes, 3, 1, needs), 3, 1, needs, 2) is None


def test_a_job_outside_of_the_cluster_is_refused():
    with pytest.raises(ConfigError, match="workers could not reach a job that is outside"):
        connect("ray://head:10001")


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("--fetch.proxy=http://me:of-the-proxy@proxy:3128", "a password"),
        ("me/s3cr3t-of-the-store", r"the value of \$AWS_SECRET_ACCESS_KEY"),
        ("https://host/pairs.tsv?X-Amz-Signature=0123456789abcdef0123", "a signed address"),
    ],
)
def test_a_secret_in_the_command_line_never_reaches_ray(word, what, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-store")
    monkeypatch.setattr(sys, "argv", ["curate", "--option", word])
    with pytest.raises(ConfigError, match=f"holds {what}, which Ray would show") as refused:
        connect("127.0.0.1:1")
    assert word not in str(refused.value)


def test_a_name_in_an_address_is_no_secret():
    refuse_secrets(["curate", "--out", "abfs://container@account.dfs.core.windows.net/data"])
