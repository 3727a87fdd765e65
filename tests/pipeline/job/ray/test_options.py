"""What a person says about workers on Ray."""

import pytest

from pipeline.job.ray.options import RayOptions
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    "wrong", [{"gpu_workers": -1}, {"worker_cpus": 0}, {"worker_memory_bytes": -1}, {"attempts": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
        RayOptions(**wrong)
