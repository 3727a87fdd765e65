import shlex

from pipeline.cli import parse, split_beam_flags
from pipeline.job.dry_run.gcloud import gcloud_command
from pipeline.job.template import command_line

WORDS = ["curate", "--pairs", "gs://b/a~b.tsv", "gs://b/c|d.tsv", "--out", "gs://b/data"]
FLAGS = [
    *("--project", "p", "--region", "r", "--temp_location", "gs://b/tmp", "--max_num_workers=9"),
    *("--sdk_container_image", "registry/i:1", "--worker_machine_type", "n1-standard-8"),
]


def test_the_command_runs_the_same_job():
    """Read as a shell and gcloud read it, and started as Dataflow starts a template."""
    settings = ["--score.prompt-template", "a picture: {caption}, isn't it", "--levels.by", "rank"]
    command = gcloud_command([*WORDS, *settings, "--runner", "dataflow", "--dry-run"], FLAGS)
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:5] == ["gcloud", "dataflow", "flex-template", "run", "aligngpt-curate"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[5:])
    given = flags.pop("parameters")
    mark, parameters = given[1], given[3:].split(given[1])
    assert given.startswith(f"^{mark}^")
    ours, _ = split_beam_flags(command_line([f"--{one}" for one in parameters]))
    wanted = parse([*WORDS, *settings])
    assert (parse(ours).pairs, parse(ours).out) == (wanted.pairs, wanted.out)
    assert parse(ours).config == wanted.config
    assert "sdk_container_image=registry/i:1" in parameters
    del flags["template-file-gcs-location"]
    assert flags == {
        "project": "p",
        "region": "r",
        "temp-location": "gs://b/tmp",
        "max-workers": "9",
        "worker-machine-type": "n1-standard-8",
    }
