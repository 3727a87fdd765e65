"""Conversations in the forms that their authors' files have."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.read.turns import conversation_text
from schemas.conversations import conversation_fault
from schemas.errors import RejectReason, SampleRejected
from tests.pipeline.read.test_transform import kept, read_files, reasons


def turns(*words: str) -> list[dict[str, str]]:
    return [
        {"from": who, "value": text}
        for who, text in zip(("human", "gpt") * len(words), words, strict=False)
    ]


def write_json(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_pictures_are_found_though_the_first_100_rows_are_text_alone(form, tmp_path):
    rows = [{"id": f"t{i}", "conversations": turns(f"What is {i}?", f"{i}.")} for i in range(101)]
    for i in range(3):
        asked = turns(f"<image>\nQuestion {i}?", f"Answer {i}.")
        rows.append({"id": f"i{i}", "image": f"{i}.png", "conversations": asked})
    path = write_json(tmp_path / "all.json", rows)
    if form == "jsonl":
        path = tmp_path / "all.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    read_files(tmp_path / "out", path)
    found = kept(tmp_path / "out")
    assert len(found) == 104 and not reasons(tmp_path / "out")
    pictures = {row["sample_id"]: row["url"] for row in found if row["url"]}
    assert pictures == {f"i{i}": str(tmp_path / f"{i}.png") for i in range(3)}


def test_records_of_a_file_may_name_their_fields_otherwise(tmp_path):
    rows = [
        {"url": "http://a.example/1.jpg", "caption": "one"},
        {"image_url": "http://a.example/2.jpg", "text": "two"},
        {"url": None, "image_url": "http://a.example/3.jpg", "caption": None, "text": "three"},
    ]
    read_files(tmp_path / "out", write_json(tmp_path / "all.json", rows))
    assert {row["caption"]: row["url"][-5:] for row in kept(tmp_path / "out")} == {
        "one": "1.jpg",
        "two": "2.jpg",
        "three": "3.jpg",
    }


def test_an_absolute_path_below_the_image_folder_and_an_empty_list_are_taken(tmp_path):
    images = tmp_path / "images"
    asked = turns("<image>\nWhat?", "A cat.")
    rows = [
        {"image": str(images / "a.jpg"), "conversations": asked},
        {"image": "/etc/passwd", "conversations": asked},
        {"image": f"{images}/../b.jpg", "conversations": asked},
        {"image": [], "conversations": turns("Hello", "Hi.")},
    ]
    read_files(tmp_path / "out", write_json(tmp_path / "x.json", rows), image_folder=str(images))
    assert {row["url"] for row in kept(tmp_path / "out")} == {str(images / "a.jpg"), None}
    assert reasons(tmp_path / "out") == {"bad_url": 2}


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You see."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
]


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_messages_and_images_of_newer_tools_are_llavas_turns(form, tmp_path):
    plain = [{**turn, "content": str(turn["content"])} for turn in MESSAGES]
    plain[1]["content"] = "<image>What?"
    rows = [{"images": ["a.jpg"], "messages": plain, "id": 7}]
    path = tmp_path / f"new.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_json(path, [*rows, {"images": ["b.jpg"], "messages": MESSAGES}])
    read_files(tmp_path / "out", path)
    by_url = {Path(row["url"]).name: row for row in kept(tmp_path / "out")}
    found = json.loads(by_url["a.jpg"]["conversations"])
    assert found[1] == {"from": "user", "value": "<image>What?"}
    assert by_url["a.jpg"]["sample_id"] == "7"
    if form == "json":
        found = json.loads(by_url["b.jpg"]["conversations"])
        assert [turn["value"] for turn in found] == ["You see.", "<image>\nWhat?", "A cat."]
        assert by_url["b.jpg"]["caption"] == "A cat."


def test_the_authors_similarity_is_a_level_from_0(tmp_path):
    asked = turns("<image>", "A cat.")
    levels = [0, 7, None, 0.31, 127, -1, True]
    rows = [
        {"image": f"{i}.jpg", "similarity": level, "conversations": asked}
        for i, level in enumerate(levels)
    ]
    read_files(tmp_path / "out", write_json(tmp_path / "x.json", rows), as_captions=True)
    found = {row["url"].rsplit("/", 1)[1]: row["given_level"] for row in kept(tmp_path / "out")}
    assert found == {"0.jpg": 1, "1.jpg": 8, "2.jpg": None, "3.jpg": None, "6.jpg": None}
    assert reasons(tmp_path / "out") == {"malformed_row": 2}


@pytest.mark.parametrize(
    ("conversation", "fault"),
    [
        ([("assistant", "Hi.")], "no turn of the assistant"),
        ([("user", "Hi.")], "no turn of the assistant"),
        ([("assistant", "Hi."), ("user", "What?")], "no turn of the assistant"),
        ([("system", "You see."), ("assistant", "Hi.")], "no turn of the assistant"),
        ([("user", "Hi."), ("assistant", " \n")], "says nothing"),
        ([("user", "Hi."), ("system", "x"), ("assistant", "Hi.")], "turn 1 of it is the system's"),
        ([("system", "x"), ("user", "Hi."), ("user", "Hm."), ("assistant", "Hi.")], None),
        ([("user", "Hi."), ("assistant", ""), ("user", "Hm."), ("assistant", "Hi.")], None),
        ([("assistant", "Hi."), ("user", "Hi."), ("assistant", "Hi.")], None),
    ],
)
def test_what_cannot_be_learnt_from_is_rejected_with_the_reason(conversation, fault):
    found = conversation_fault(conversation)
    said = [{"from": who, "value": words} for who, words in conversation]
    if fault is None:
        assert found is None and conversation_text(said, 0)[1] == "Hi."
        return
    assert found is not None and fault in found
    with pytest.raises(SampleRejected) as raised:
        conversation_text(said, 0)
    assert raised.value.reason is RejectReason.UNTRAINABLE_CONVERSATION
    assert raised.value.detail == found


@pytest.mark.parametrize(
    "bad",
    [
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "video"}]}],
        [{"role": "user", "content": 3}],
        [{"value": "x"}],
        "[",
        [],
    ],
)
def test_turns_in_no_known_form_are_rejected(bad):
    with pytest.raises(SampleRejected) as raised:
        conversation_text(bad, 0)
    assert raised.value.reason is RejectReason.MALFORMED_ROW


def seen(*parts: dict) -> list[dict]:
    """Returns messages that ask about images, each as a part says where it is."""
    asked = [*parts, {"type": "text", "text": "What?", "image": None}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]


PARTS: dict[str, dict[str, Any]] = {
    "a.jpg": {"type": "image", "image": "a.jpg"},
    "b.jpg": {"type": "image", "path": "b.jpg"},
    "http://x.example/c.jpg": {"type": "image", "url": "http://x.example/c.jpg"},
    "http://x.example/d.jpg": {
        "type": "image_url",
        "image_url": {"url": "http://x.example/d.jpg", "detail": "low"},
    },
    "http://x.example/e.jpg": {"type": "image_url", "image_url": "http://x.example/e.jpg"},
    "f.jpg": {"type": "image", "image": {"path": "f.jpg", "bytes": None}},
}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_images_that_the_parts_of_messages_name_are_the_sample_s(form, tmp_path):
    rows = [seen(part) for part in PARTS.values()] + [seen(PARTS["b.jpg"], PARTS["a.jpg"])]
    path = tmp_path / f"all.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    elif form == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["messages"], *([json.dumps(row)] for row in rows)])
    else:
        rows = [seen(PARTS["a.jpg"]), seen(PARTS["b.jpg"], {**PARTS["b.jpg"], "path": "a.jpg"})]
        pq.write_table(pa.table({"messages": rows}), path)
    read_files(tmp_path / "out", path)
    found = kept(tmp_path / "out")
    assert not reasons(tmp_path / "out") and len(found) == len(rows)
    named = [[url.removeprefix(f"{tmp_path}/") for url in urls_of(row)] for row in found]
    one = [["a.jpg"]] if form == "parquet" else [[url] for url in PARTS]
    assert sorted(named) == sorted([*one, ["b.jpg", "a.jpg"]])
    assert all(row["conversations"].count("<image>") == len(urls_of(row)) for row in found)


def urls_of(row: dict) -> list[str]:
    return [row["url"], *json.loads(row["more_urls"] or "[]")]


def test_a_row_s_own_images_count_before_those_of_its_messages_and_half_named_ones_do_not(tmp_path):
    rows = [
        {"images": ["own.jpg"], "messages": seen(PARTS["a.jpg"])},
        {"images": [], "messages": seen(PARTS["a.jpg"], {"type": "image"})},
        {"messages": seen({"type": "image", "image": "../out.jpg"})},
        {"messages": seen({"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}})},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
    ]
    read_files(tmp_path / "out", write_json(tmp_path / "all.json", rows))
    assert {row["url"] for row in kept(tmp_path / "out")} == {str(tmp_path / "own.jpg"), None}
    assert reasons(tmp_path / "out") == {"missing_url": 1, "bad_url": 2}
