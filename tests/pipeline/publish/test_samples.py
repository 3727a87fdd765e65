"""What is published of a dataset, and what may be said of it."""

import json
from dataclasses import replace

from pipeline.publish.samples import Publishable, sayable
from schemas.manifest import Manifest, Parent
from schemas.shards import DatasetLayout
from tests.publications import RATIO, images_of


def test_where_files_lay_on_the_machine_is_not_told():
    row = {"url": "/home/me/pictures/cats/1.png", "key": "k"}
    assert sayable(row, ["/home/me/pictures"])["url"] == "cats/1.png"
    assert sayable(row, ["/srv"])["url"] == "1.png"
    assert sayable({"url": "https://a.example/1"}, ["/srv"])["url"] == "https://a.example/1"
    row["more_urls"] = '["/home/me/pictures/2.png","file:///srv/x/3.png","https://a.example/4"]'
    told = json.loads(sayable(row, ["file:///home/me/pictures", "/srv"])["more_urls"])
    assert told == ["2.png", "x/3.png", "https://a.example/4"]
    assert sayable({"url": None, "more_urls": None}, ["/srv"])["url"] is None
    member = {"url": "file:///srv/x/0.tar#k.jpg"}
    assert sayable(member, [])["url"] == "0.tar#k.jpg"


def test_folders_of_all_merged_datasets_are_known(dataset):
    manifest = Manifest.from_json((dataset / "manifest.json").read_text())
    parents = [
        Parent(
            folder=name,
            manifest_sha256="0" * 64,
            samples=1,
            taken=1,
            config={"fetch": {"allow_folders": [f"/{name}"]}},
        )
        for name in ("a", "b")
    ]
    manifest = replace(manifest, config=parents[0].config, parents=parents)
    found = Publishable(DatasetLayout(str(dataset)), manifest, RATIO).image_folders
    assert set(found) == {"/a", "/b"}


def test_what_there_is_is_counted_from_the_tables(dataset, expected):
    layout = DatasetLayout(str(dataset))
    manifest = Manifest.from_json((dataset / "manifest.json").read_text())
    rows = [row for split in expected.values() for row in split.values()]
    counts = Publishable(layout, manifest, RATIO).count()
    assert counts.samples == {split: len(found) for split, found in expected.items()}
    assert counts.conversations == sum(row["conversations"] is not None for row in rows)
    images = [image for row in rows for image in images_of(row)]
    assert (counts.images, counts.image_bytes) == (len(images), sum(map(len, images)))
    assert counts.image_fields == {"jpg", "1.jpg", "2.jpg"}
    assert counts.levels == {}


def test_a_split_depends_on_the_address_alone_and_on_the_key_of_texts(dataset):
    manifest = Manifest.from_json((dataset / "manifest.json").read_text())
    layout = DatasetLayout(str(dataset))
    halves = Publishable(layout, manifest, 0.5)
    rows = [{"url": f"https://a.example/{n}", "key": f"{n:032x}"} for n in range(200)]
    found = [halves.split_of(row) for row in rows]
    assert 70 < found.count("validation") < 130
    assert [halves.split_of(row | {"key": "other"}) for row in rows] == found
    assert {Publishable(layout, manifest, 0.0).split_of(row) for row in rows} == {"train"}
    by_key = [halves.split_of(row | {"url": None}) for row in rows]
    assert by_key == [halves.split_of({"url": row["key"], "key": ""}) for row in rows]
