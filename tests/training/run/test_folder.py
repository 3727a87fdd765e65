import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.training.test_train import tiny_config
from training.train import train

HOLD = """
import fcntl, pathlib, sys, time
file = pathlib.Path(sys.argv[1]).open("w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(1000)
"""


def test_a_second_run_is_refused_while_one_is_at_work_and_let_in_when_that_has_died(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run is at work"):
            train(config, [caption_dataset], str(tmp_path))
        other.kill()
    assert train(config, [caption_dataset], str(tmp_path))


def test_a_record_that_cannot_be_read_is_named(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    assert train(config, [caption_dataset], str(tmp_path))
    for name in ("config.json", "finished.json", ".written.json"):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text("")
        with pytest.raises(ConfigError, match=f"{name}, which a run wrote, cannot be read"):
            train(replace(config, seed=1), [caption_dataset], str(tmp_path))
        (tmp_path / name).write_text(kept)


def test_a_run_is_not_written_into_a_dataset_or_a_file(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "data" / "_run").mkdir(parents=True)
    with pytest.raises(ConfigError, match="data is a dataset: give the run a folder of its own"):
        train(config, [caption_dataset], str(tmp_path / "data"))
    for out in ("file", "file/run"):
        with pytest.raises(ConfigError, match="file is no folder that can be written to"):
            train(config, [caption_dataset], str(tmp_path / out))

    (tmp_path / "data" / "_run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="train/run lies in the dataset"):
        train(config, [caption_dataset], str(tmp_path / "data" / "train" / "run"))


@pytest.mark.parametrize(
    "name", ["model/weights.bin", "config.json", "metrics.jsonl", "loss.png", "checkpoints/a.pt"]
)
def test_a_run_does_not_begin_where_a_users_file_has_the_name_of_one_of_its_own(
    name: str, tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("{}")
    with pytest.raises(ConfigError, match=f"holds {name.split('/')[0]}, which no run"):
        train(config, [caption_dataset], str(tmp_path))
    assert mine.read_text() == "{}"


def test_what_a_user_puts_into_a_run_stays(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=3, save_every_steps=1, keep_checkpoints=1)
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").write_text("mine")
    assert train(config, [caption_dataset], str(out))
    (out / "finished.json").unlink()
    mine = [out / "notes.txt", *(out / "checkpoints" / f"step-{n}" for n in ("best", "00000001"))]
    for path in mine:
        path.write_text("mine")
    shutil.rmtree(out / "model")
    (out / "checkpoints" / "step-00000002").mkdir()
    (out / "checkpoints" / "step-00000002" / "run.json").write_text('{"plan_fingerprint": "x"}')
    again = replace(config, max_steps=3, log_every_steps=2)
    assert train(again, [caption_dataset], str(out))
    assert (out / ".lock").read_text() == "mine"
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert (out / "checkpoints" / "step-00000002" / "run.json").exists()
    (out / "model").rename(out / "ours")
    written = json.loads((out / ".written.json").read_text())
    (out / ".written.json").write_text(json.dumps([name for name in written if name != "model"]))
    (out / "finished.json").unlink()
    (out / "model").mkdir()
    with pytest.raises(ConfigError, match="holds model, which no run"):
        train(config, [caption_dataset], str(out))


def test_a_first_attempt_that_was_no_good_leaves_the_folder_free(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    good = tiny_config(tiny_parts, max_steps=1)
    bad = replace(good, model=replace(good.model, vision_tower="timm:no_such_model"))
    with pytest.raises(ConfigError, match=r"model\.vision_tower 'timm:no_such_model' could not be"):
        train(bad, [caption_dataset], str(tmp_path))
    assert train(good, [caption_dataset], str(tmp_path))


def test_a_refusal_names_each_setting_with_both_values_and_what_to_do(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    assert train(config, [caption_dataset], str(tmp_path))
    (tmp_path / "finished.json").unlink()
    optimizer = replace(config.optimizer, learning_rate=0.5)
    with pytest.raises(ConfigError) as refusal:
        train(replace(config, seed=3, optimizer=optimizer), [caption_dataset], str(tmp_path))
    message = str(refusal.value)
    assert (
        "\n  optimizer.learning_rate was 0.01 and is now 0.5\n  seed was 0 and is now 3" in message
    )
    assert "Give the old values" in message and "choose another --out" in message


def test_a_finished_run_of_other_data_names_what_differs(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    assert train(config, [caption_dataset], str(tmp_path))
    with pytest.raises(ConfigError, match="seed was 0 and is now 3"):
        train(replace(config, seed=3), [caption_dataset, caption_dataset], str(tmp_path))


def test_a_run_of_an_older_version_goes_on_if_only_new_settings_are_at_their_defaults(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, max_steps=1)
    assert train(config, [caption_dataset], str(tmp_path))
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["config"]["lora"], stored["config"]["data"]["packing_window"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert train(config, [caption_dataset], str(tmp_path))
    changed = replace(config, data=replace(config.data, packing_window=7))
    with pytest.raises(ConfigError, match="packing_window was 64 and is now 7"):
        train(changed, [caption_dataset], str(tmp_path))
