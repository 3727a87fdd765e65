import pytest

from pipeline.config import CurationConfig
from pipeline.dataset.derivation import Derivation
from pipeline.dataset.guard import record_config
from pipeline.job.derive import deriving
from schemas.errors import ConfigError
from schemas.manifest import Parent
from schemas.shards import DatasetLayout


def selection(**more):
    parent = Parent(folder="a", manifest_sha256="0" * 64, samples=0, taken=0, config={})
    values = {
        "command": "select",
        "fingerprint": "f",
        "settings": {"where": None},
        "parents": (parent,),
        "model": None,
        "rejected": {},
    }
    return Derivation(**{**values, **more})


class Stopped(Exception):
    """Ends a derivation after it has begun, as a kill would."""


def begun(layout, derivation):
    with pytest.raises(Stopped), deriving(layout, [], print) as begin:
        begin(derivation, CurationConfig())
        raise Stopped


def test_the_same_derivation_goes_on_and_another_is_refused_by_what_differs(tmp_path):
    layout = DatasetLayout(str(tmp_path / "out"))
    begun(layout, selection())
    begun(layout, selection())
    other = selection(fingerprint="g", settings={"where": "width > 3"})
    with (
        pytest.raises(ConfigError, match=r"where was None there, this run has 'width > 3'"),
        deriving(layout, [], print) as begin,
    ):
        begin(other, CurationConfig())
    with (
        pytest.raises(ConfigError, match="it was made by select"),
        deriving(layout, [], print) as begin,
    ):
        begin(selection(command="merge", fingerprint="g"), CurationConfig())


def test_a_folder_and_its_parent_do_not_lie_in_each_other(tmp_path):
    parent = str(tmp_path / "parent")
    (tmp_path / "parent").mkdir()
    for out in (f"{parent}/selected", str(tmp_path)):
        with (
            pytest.raises(ConfigError, match="lie in each other"),
            deriving(DatasetLayout(out), [parent], print),
        ):
            pass


def test_a_curated_dataset_is_not_written_over(tmp_path):
    layout = DatasetLayout(str(tmp_path / "out"))
    begun(layout, selection())
    record_config(layout, CurationConfig())
    (tmp_path / "out" / "_run" / "derived.json").unlink()
    with (
        pytest.raises(ConfigError, match="holds a curated dataset"),
        deriving(layout, [], print) as begin,
    ):
        begin(selection(), CurationConfig())
