from hypothesis import given
from hypothesis import strategies as st

from schemas.records import CaptionedImage, StoredSample, TrainSample, pair_key


def test_a_key_never_changes():
    key = pair_key("https://images.example/cat.jpg", "a cat")
    assert key == "304fae81c812fca87e01c4ce8659225a"
    assert pair_key("", "ünïcode \ud800") == "82cb4be41d49b61de9ebbec1509dc4a1"


@given(st.text(), st.text())
def test_a_key_is_32_hex_digits(url, text):
    assert len(pair_key(url, text)) == 32
    assert int(pair_key(url, text), 16) >= 0


def test_url_and_text_do_not_run_into_each_other():
    assert pair_key("ab", "c") != pair_key("a", "bc")


def test_each_record_holds_all_columns_of_the_one_it_extends():
    records = (CaptionedImage, StoredSample, TrainSample)
    names = [set(record.__dataclass_fields__) for record in records]
    assert names[0] < names[1] < names[2]
