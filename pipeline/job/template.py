"""The flex template of Dataflow: its parameters, and the command line that they stand for.

Dataflow starts the template's image with each parameter as `--name=value`, and with flags of its
own. What is ours goes before `--`, what is Beam's behind it.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ConfigError

PAIRS, OUT, RECIPE, SETTINGS = "pairs", "out", "recipe", "settings"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the template."""

    name: str
    label: str
    help: str
    is_optional: bool = False
    pattern: str = ""
    """Regular expression that the value must match; anything is allowed without."""


PARAMETERS = (
    Parameter(
        PAIRS,
        "Files with the pairs",
        "Files or globs in Cloud Storage, parted by spaces, such as gs://BUCKET/pairs/*.parquet",
        pattern=r"^gs://\S+( +gs://\S+)*$",
    ),
    Parameter(
        OUT,
        "Folder of the dataset",
        "Where the dataset is written, such as gs://BUCKET/data",
        pattern=r"^gs://\S+$",
    ),
    Parameter(
        RECIPE,
        "Recipe",
        "Complete configuration to start from, such as laion_pairs or llava_instructions",
        is_optional=True,
        pattern=r"^\w+$",
    ),
    Parameter(
        SETTINGS,
        "Settings",
        "Further options of `aligngpt-curate curate`, as on its command line, such as "
        "--score.device cuda --levels.num-levels 8",
        is_optional=True,
    ),
    Parameter(
        "sdk_container_image",
        "Image of the workers",
        "Image that `make image` built, in a registry that the project can read",
        pattern=r"^\S+$",
    ),
)

OURS = (PAIRS, OUT, RECIPE, SETTINGS)

NOT_FOR_A_TEMPLATE = ("--runner", "--dry-run", "--no-dry-run")


def template_metadata() -> dict[str, Any]:
    """Returns the metadata of the template, for `gcloud dataflow flex-template build`."""
    return {
        "name": "aligngpt-curate",
        "description": "Turns a list of image URLs and captions into an aligned training set.",
        "streaming": False,
        "parameters": [_as_json(parameter) for parameter in PARAMETERS],
    }


def _as_json(parameter: Parameter) -> dict[str, Any]:
    values: dict[str, Any] = {"name": parameter.name, "label": parameter.label}
    values |= {"helpText": parameter.help, "isOptional": parameter.is_optional}
    if parameter.pattern:
        values["regexes"] = [parameter.pattern]
    return values


def command_line(arguments: Sequence[str]) -> list[str]:
    """Returns the words of `aligngpt-curate` that the template's arguments stand for.

    Raises:
        ConfigError: if one that is needed is missing, or a setting cannot be read.
    """
    given: dict[str, str] = {}
    beam_flags: list[str] = []
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if sign and name in OURS:
            given[name] = value
        elif name.lower() != "runner":
            beam_flags.append(argument)
    for name in (PAIRS, OUT):
        if not given.get(name, "").strip():
            raise ConfigError(f"the template's parameter {name!r} is missing")
    words = ["curate", "--pairs", *given[PAIRS].split(), "--out", given[OUT].strip()]
    if given.get(RECIPE):
        words += ["--recipe", given[RECIPE]]
    try:
        words += shlex.split(given.get(SETTINGS, ""))
    except ValueError as error:
        raise ConfigError(f"the template's parameter {SETTINGS!r}: {error}") from error
    return [*words, "--runner", "DataflowRunner", "--", *beam_flags]


def parameters_of(words: Sequence[str]) -> dict[str, str]:
    """Returns the template's parameters that stand for a command line, from `curate` on.

    Raises:
        ConfigError: if a path holds a space, which parts paths in a parameter.
    """
    groups = _grouped(words[1:])
    given = {PAIRS: "", OUT: ""}
    settings: list[str] = []
    for flag, values in groups:
        name = flag.removeprefix("--")
        if name in (PAIRS, OUT, RECIPE):
            if any(re.search(r"\s", value) for value in values):
                raise ConfigError(f"--{name}: a path with a space cannot be given to the template")
            given[name] = " ".join(values)
        elif flag not in NOT_FOR_A_TEMPLATE:
            settings += [flag, *values]
    if settings:
        given[SETTINGS] = shlex.join(settings)
    return given


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Returns each flag with its values, whichever of its two forms it was written in."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        flag, sign, value = word.partition("=")
        if word.startswith("--"):
            groups.append((flag.replace("_", "-"), [value] if sign else []))
        elif groups:
            groups[-1][1].append(word)
    return groups
