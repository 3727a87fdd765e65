"""What is private to a library is used in one place, in versions that it was seen in."""

import ast
import functools
import importlib
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "scoring", "pipeline", "training")

USES = [
    # package, where it is found, what is used of it, the one module that uses it
    *(
        ("aiohttp", "aiohttp.client_proto", f"ResponseHandler.{name}", at)
        for name, at in (
            ("set_response_params", "pipeline/fetch/http/heads.py"),
            ("force_close", "pipeline/fetch/http/heads.py"),
            ("data_received", None),
            ("set_exception", None),
        )
    ),
    *(
        ("apache-beam", "apache_beam.runners.portability.fn_api_runner.worker_handlers", name, at)
        for name, at in (
            ("ControlConnection", "pipeline/job/local_workers.py"),
            ("GrpcWorkerHandler", "pipeline/job/local_workers.py"),
            ("GrpcWorkerHandler.stop_worker", None),
            ("WorkerHandler.register_environment", None),
            ("ExternalWorkerHandler", "pipeline/job/ray/runner.py"),
            ("ExternalWorkerHandler.host_from_worker", None),
        )
    ),
    *(
        ("apache-beam", "apache_beam.runners.portability.fn_api_runner.fn_runner", name, at)
        for name, at in (
            ("ParallelBundleManager", "pipeline/job/bundles.py"),
            ("BundleManager", "pipeline/job/bundles.py"),
            ("FnApiRunner._get_bundle_manager", None),
            ("FnApiRunner.get_cache_token_generator", "pipeline/job/bundles.py"),
        )
    ),
    (
        "apache-beam",
        "apache_beam.runners.worker.sdk_worker_main",
        "create_harness",
        "pipeline/job/ray/worker.py",
    ),
    *(
        ("apache-beam", module, name, at)
        for module, name, at in (
            (
                "apache_beam.internal.cloudpickle_pickler",
                "DEFAULT_CONFIG.filepath_interceptor",
                "pipeline/job/code_paths.py",
            ),
            (
                "apache_beam.runners.portability.portable_runner",
                "PortableRunner._optimize_pipeline",
                "pipeline/job/dry_run/graph.py",
            ),
        )
    ),
    (
        "apache-beam",
        "apache_beam.transforms.core",
        "get_function_args_defaults",
        "pipeline/job/inspection.py",
    ),
    (
        "apache-beam",
        "apache_beam.transforms.userstate",
        "get_dofn_specs",
        "pipeline/job/inspection.py",
    ),
    ("apache-beam", "apache_beam.transforms.environments", "Environment.register_urn", None),
    ("apache-beam", "apache_beam.runners.worker.sdk_worker_main", "main", None),
    ("open_clip_torch", "open_clip.transformer", "text_global_pool", "scoring/clip/text_tower.py"),
    ("open_clip_torch", "open_clip.transform", "image_transform_v2", "scoring/clip/preprocess.py"),
    (
        "open_clip_torch",
        "open_clip.transform",
        "merge_preprocess_dict",
        "scoring/clip/checkpoints.py",
    ),
    *(
        ("transformers", "transformers.generation.utils", f"GenerationMixin.{name}", at)
        for at in ("training/model/generation.py",)
        for name in (
            "_get_logits_processor",
            "_get_candidate_generator",
            "_expand_inputs_for_generation",
        )
    ),
    (
        "transformers",
        "transformers.integrations.sdpa_attention",
        "sdpa_attention_forward",
        "training/model/packing/attention.py",
    ),
    (
        "transformers",
        "transformers.utils.chat_template_utils",
        "render_jinja_template",
        "training/data/spans.py",
    ),
    ("transformers", "transformers.modeling_utils", "PreTrainedModel._no_split_modules", None),
    ("torch", "torch", "_assert_async", "training/model/packing/segments.py"),
    *(
        ("torch", "torch", f"ops.mkldnn.{name}", "scoring/clip/packing.py")
        for name in ("_linear_pointwise", "_reorder_linear_weight")
    ),
    *(
        (
            "uvicorn",
            "uvicorn.protocols.http.h11_impl",
            f"H11Protocol.{name}",
            "training/serve/connections.py" if name == "connection_made" else None,
        )
        for name in ("connection_made", "connection_lost", "data_received")
    ),
    ("uvicorn", "uvicorn.protocols.http.h11_impl", "RequestResponseCycle", None),
    (
        "deepspeed",
        "deepspeed.runtime.engine",
        "DeepSpeedEngine.get_global_grad_norm",
        None,
    ),
]


def declared_range(package: str) -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    words = [*project["dependencies"], *extras["curate"], *extras["train"], *extras["serve"]]
    return next(found for found in map(Requirement, words) if found.name == package)


@pytest.mark.parametrize("package", sorted({use[0] for use in USES}))
def test_the_installed_version_is_one_that_the_private_parts_were_seen_in(package: str) -> None:
    wanted, found = declared_range(package).specifier, version(package)
    assert str(wanted), f"pyproject.toml declares no range of versions for {package}"
    assert found in wanted, (
        f"{package} {found} is installed, its private parts were seen in {wanted}: try what uses "
        "them (listed in this file), then widen the range in pyproject.toml"
    )


@pytest.mark.parametrize(("package", "module", "name", "at"), USES)
def test_what_is_private_to_a_library_is_still_there(
    package: str, module: str, name: str, at: str | None
) -> None:
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), (
            f"{package} {version(package)} has no {module}.{name} any more: "
            f"mend {at or 'what uses it'}, and declare in pyproject.toml the versions that have it"
        )
        found = getattr(found, part)


@functools.cache
def names_in_modules() -> dict[str, set[str]]:
    """Returns every name and attribute that each of our modules uses or imports."""
    found: dict[str, set[str]] = {}
    for path, node in nodes_of_modules():
        names = found.setdefault(path, set())
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
    return found


def nodes_of_modules() -> Iterator[tuple[str, ast.AST]]:
    """Yields every node of our modules with the module's path."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield str(path.relative_to(ROOT)), node


@pytest.mark.parametrize(("package", "module", "name", "at"), [use for use in USES if use[3]])
def test_each_private_use_stands_in_one_place(
    package: str, module: str, name: str, at: str
) -> None:
    last = name.rsplit(".", 1)[-1]
    users = [path for path, names in names_in_modules().items() if last in names]
    assert users == [at]


OWN_ATTRIBUTES = {
    "_worker_handlers": 1,  # ray/runner: which workers a step of Beam's runner has
    "_factory": 1,  # fetch/http/client: what makes a connection's protocol
    "_attn_implementation": 3,  # aligngpt, packing/attention, packing/check: what a config says
    "_hp_optimizer_states_linked": 1,
    "_global_grad_norm": 1,
    "_no_split_modules": 1,
}
"""Private attributes that are read or set on a library's objects, and in how many modules."""


@functools.cache
def users_of_attributes() -> dict[str, set[str]]:
    """Returns which modules read or set an attribute of an object other than themselves."""
    users: dict[str, set[str]] = {}
    for path, node in nodes_of_modules():
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id == "self"
        ):
            users.setdefault(node.attr, set()).add(path)
    return users


@pytest.mark.parametrize(("name", "count"), OWN_ATTRIBUTES.items())
def test_private_attributes_of_libraries_do_not_spread(name: str, count: int) -> None:
    users = users_of_attributes().get(name, set())
    assert 0 < len(users) <= count, users
