import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_train import logged, tiny_config
from training.train import train

pytest.importorskip("wandb")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
def test_weights_and_biases_gets_every_metric_offline_in_one_run(
    tiny_parts: dict[str, str],
    caption_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    config = tiny_config(tiny_parts, max_steps=2, wandb_project="aligngpt-test")
    assert train(config, [caption_dataset], str(out))
    found = list((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(found) == 1
    give_up_at = time.monotonic() + 60  # wandb's own process writes its file out when it ends
    while len(records := stored_history(found[0])) < 4 and time.monotonic() < give_up_at:
        time.sleep(0.2)
    assert [record["train/loss"] for record in records if "train/loss" in record] == pytest.approx(
        logged(out, "train/loss")
    )
    assert sum("validation/loss" in record for record in records) == 2


def stored_history(path: Path) -> list[dict[str, float]]:
    """Returns the lines that wandb's file holds."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made as it is imported
    lines = []
    for data in stored_records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            names = [item.key or "/".join(item.nested_key) for item in items]
            values = [json.loads(item.value_json) for item in items]
            lines.append(dict(zip(names, values, strict=True)))
    return lines


def stored_records(data: bytes) -> Iterator[bytes]:
    """Yields the records of LevelDB's log format, in which wandb writes, after 7 bytes of its own.

    Blocks of 32 KiB hold fragments: checksum (4), length (2), kind (1: whole or 4: last).
    """
    position, parts = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_without_the_package_the_message_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        "from training.metrics.log import check_wandb\n"
        "from schemas.errors import ConfigError\n"
        "try: check_wandb('p')\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not installed" in done.stdout and "aligngpt[wandb]" in done.stdout
