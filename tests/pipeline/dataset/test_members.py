"""Types of the `.json` members: the same in every sample, as readers that sample them need."""

import dataclasses
import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.dataset.members import member_json
from schemas.records import FetchedSample, StoredSample, json_text

WHOLE = FetchedSample(
    key="0" * 32,
    url="https://example.com/a.jpg",
    more_urls=json_text(["https://example.com/b.jpg"]),
    caption="one",
    captions=json_text(["one", "two"]),
    conversations=json_text([{"from": "gpt", "value": "a cat"}]),
    source="in.jsonl",
    expected_hash="md5:" + "0" * 32,
    image_format="jpg",
    width=3,
    height=4,
    original_width=5,
    original_height=6,
    sha256="0" * 64,
    pixel_hash="1" * 32,
    more_images=[{"width": 1, "height": 2, "sha256": "0"}],
)

NULLABLE = [
    field.name
    for field in dataclasses.fields(StoredSample)
    if field.name not in ("key", "caption", "source")
]


def values_of(**changes: Any) -> dict[str, Any]:
    sample = dataclasses.replace(WHOLE, **changes)
    values: dict[str, Any] = json.loads(member_json(sample, {"clip_score": 0.5}))
    return values


@pytest.mark.parametrize("name", NULLABLE)
def test_a_field_has_the_type_that_it_has_in_other_samples_where_it_is_missing(name: str) -> None:
    type_of = pa.Table.from_pylist([values_of()]).schema
    assert pa.Table.from_pylist([values_of(**{name: None})]).schema == type_of


def test_nothing_is_lost_in_it() -> None:
    values = values_of()
    assert values["captions"] == ["one", "two"]
    assert values_of(captions=None)["captions"] == ["one"]
    assert json.loads(values["conversations"]) == [{"from": "gpt", "value": "a cat"}]
    assert json.loads(values["more_urls"]) == ["https://example.com/b.jpg"]
    assert json.loads(values["more_images"])[0]["height"] == 2
    assert json.loads(values_of(more_images=None)["more_images"]) == []
