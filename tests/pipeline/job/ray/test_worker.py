"""What a worker does before it serves."""

import os

import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'aligngpt[ray]'")

from pipeline.job.ray.worker import BeamWorker
from schemas.errors import ConfigError


@pytest.mark.parametrize(("has_gpu", "seen"), [(True, "3"), (False, "")])
def test_what_a_job_has_done_first_sees_only_the_gpu_that_is_the_workers(
    has_gpu, seen, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    devices = []

    def prepare() -> None:
        devices.append(os.environ["CUDA_VISIBLE_DEVICES"])
        raise ConfigError("this job cannot work here")

    with pytest.raises(ConfigError, match="cannot work here"):
        BeamWorker().begin(has_gpu, prepare)
    assert devices == [seen]
