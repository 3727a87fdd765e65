"""A finished dataset whose lowest levels a tiny model writes captions for."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config import CurationConfig
from scoring.config import RecaptionConfig
from tests.curations import curate
from tests.tiny_itm import write_tiny_writer


class Recaptioned(NamedTuple):
    """A dataset, what made it, and what it was before."""

    root: Path
    config: CurationConfig
    said: str
    before: Path


@pytest.fixture(scope="session")
def writing(config, tmp_path_factory):
    """The configuration with captions by a model."""
    folder = write_tiny_writer(tmp_path_factory.mktemp("writer") / "Tiny-Writer")
    recaption = RecaptionConfig(model=folder, levels=(1, 2, 3), batch_size=4, max_new_tokens=8)
    return replace(config, recaption=recaption)


@pytest.fixture(scope="session")
def recaptioned(curated, writing, pairs, tmp_path_factory):
    """The same pairs again, with captions by a model, on what was fetched and scored before."""
    root = tmp_path_factory.mktemp("recaptioned") / "data"
    shutil.copytree(curated[0], root)
    _, said = curate(writing, pairs, root)
    return Recaptioned(root, writing, said, curated[0])
