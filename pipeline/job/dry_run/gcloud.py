"""The command of gcloud that runs the same job from the flex template."""

import shlex
from collections.abc import Sequence

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions

from pipeline.job.template import parameters_of

TEMPLATE = "gs://BUCKET/templates/aligngpt-curate.json"
"""Where the template is said to be; where it really is, only its owner knows."""

CLOUD_FLAGS = ("project", "region", "temp_location", "staging_location", "service_account_email")
WORKER_FLAGS = {
    "num_workers": "num-workers",
    "max_num_workers": "max-workers",
    "machine_type": "worker-machine-type",
    "network": "network",
    "subnetwork": "subnetwork",
}
"""Beam's flags that have one of gcloud's, and its name."""

SEPARATORS = "~|#%@!"
"""Which of these stands in no parameter parts them. Source: `gcloud topic escaping`."""


def gcloud_command(words: Sequence[str], beam_flags: Sequence[str]) -> str:
    """Returns the command that runs a curation from the flex template, a line a flag.

    Args:
        words: of `aligngpt-curate`, from `curate` on.
        beam_flags: those after `--`.
    """
    options = PipelineOptions(list(beam_flags))
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    name = cloud.job_name or "aligngpt-curate"
    flags = [f"gcloud dataflow flex-template run {shlex.quote(name)}"]
    flags.append(f"--template-file-gcs-location={TEMPLATE}")
    for flag in CLOUD_FLAGS:
        if value := getattr(cloud, flag):
            flags.append(f"--{flag.replace('_', '-')}={shlex.quote(value)}")
    for flag, theirs in WORKER_FLAGS.items():
        if value := getattr(worker, flag):
            flags.append(f"--{theirs}={shlex.quote(str(value))}")
    given = parameters_of(words)
    if worker.sdk_container_image:
        given["sdk_container_image"] = worker.sdk_container_image
    flags.append(f"--parameters={shlex.quote(_joined(given))}")
    return " \\\n  ".join(flags)


def _joined(parameters: dict[str, str]) -> str:
    pairs = [f"{name}={value}" for name, value in parameters.items()]
    mark = next(mark for mark in SEPARATORS if not any(mark in pair for pair in pairs))
    return f"^{mark}^{mark.join(pairs)}"
