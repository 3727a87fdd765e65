"""The manifest for KubeRay is one that its operator takes, and asks for what the command needs."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.cli import parse
from pipeline.job.ray.options import RayOptions
from tests.curations import ROOT

MANIFEST = ROOT / "deploy" / "rayjob.yaml"
GIB = 2**30


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The custom resource's schema, trimmed; its first field says where it is from."""
    return json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def faults(schema: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(manifest["spec"])]


def test_the_operator_takes_the_manifest(schema, manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert faults(schema, manifest) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(entryPoint="x"), "'entryPoint' was unexpected"),
        (lambda spec: spec.update(backoffLimit="3"), "'3' is not of type 'integer'"),
        (
            lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
            "'groupName' is a required property",
        ),
        (
            lambda spec: container_of(spec["rayClusterSpec"]["headGroupSpec"]).update(envfrom=[]),
            "'envfrom' was unexpected",
        ),
    ],
)
def test_the_schema_refuses_what_the_operator_would(schema, manifest, change, said):
    change(manifest["spec"])
    (fault,) = faults(schema, manifest)
    assert said in fault


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    return container


def test_the_command_is_ours_and_the_cluster_has_room_for_what_it_asks_for(manifest):
    command = parse(shlex.split(manifest["spec"]["entrypoint"])[1:])
    assert command.runner == "ray"
    assert (command.config.score.device, command.config.deduplicate.device) == ("cuda", "cuda")
    options: RayOptions = command.ray
    groups = {
        one["groupName"]: one for one in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    room = {
        name: (one["replicas"], container_of(one)["resources"]["limits"])
        for name, one in groups.items()
    }
    nodes, each = room["fetch"]
    cpus = int(each["cpu"])
    assert nodes * cpus >= command.workers * options.worker_cpus
    assert int(each["memory"].removesuffix("Gi")) * GIB >= cpus * options.worker_memory_bytes
    nodes, each = room["gpu"]
    assert nodes * int(each["nvidia.com/gpu"]) == options.gpu_workers
    assert "nvidia.com/gpu" not in room["fetch"][1]


def test_all_pods_have_our_image_the_stores_credentials_and_no_root(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    lock = (ROOT / "docker" / "requirements.lock").read_text()
    assert f"ray=={cluster['rayVersion']} " in lock
    user = re.search(r"useradd --uid (\d+)", (ROOT / "docker" / "install.sh").read_text())
    assert user
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user[1]),
            "fsGroup": int(user[1]),
        }
        container = container_of(group)
        assert container["image"] == "REGISTRY/aligngpt-curate:gpu"
        assert container["envFrom"] == [{"secretRef": {"name": "aligngpt-store"}}]
        assert container["resources"]["limits"] == container["resources"]["requests"]
