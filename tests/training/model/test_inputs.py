import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from training.model.inputs import IGNORE_INDEX, Placeholders, align_position, lay_out

IMAGE, ALIGN, BOS = 100, 101, 1


def placeholders(**settings):
    values = {
        "image_token_id": IMAGE,
        "align_token_id": ALIGN,
        "num_image_tokens": 3,
        "bos_token_id": BOS,
    }
    return Placeholders(**{**values, **settings})


def test_align_stands_straight_after_bos_and_images_take_their_room():
    tokens = lay_out([BOS, IMAGE, 5, 6, 7], [False, False, False, True, True], placeholders())
    assert tokens.input_ids == [BOS, ALIGN, IMAGE, IMAGE, IMAGE, 5, 6, 7]
    assert tokens.labels == [IGNORE_INDEX] * 6 + [6, 7]
    assert tokens.prompt_mask == [False] * 5 + [True, False, False]


def test_align_stands_first_where_texts_start_without_bos():
    tokens = lay_out([5, IMAGE, 6], [False, False, True], placeholders(bos_token_id=None))
    assert tokens.input_ids == [ALIGN, 5, IMAGE, IMAGE, IMAGE, 6]


def test_a_sample_without_images_has_no_align():
    tokens = lay_out([BOS, 5, 6], [False, False, True], placeholders())
    assert tokens.input_ids == [BOS, 5, 6]


def test_mode_none_has_no_align():
    tokens = lay_out([BOS, IMAGE, 6], [False, False, True], placeholders(has_align_token=False))
    assert tokens.input_ids == [BOS, IMAGE, IMAGE, IMAGE, 6]


def test_the_prompt_ends_at_the_first_target_even_if_a_second_question_follows():
    tokens = lay_out(
        [BOS, IMAGE, 5, 6, 7, 8], [False, False, False, True, False, True], placeholders()
    )
    prompt = [
        t for t, is_prompt in zip(tokens.input_ids, tokens.prompt_mask, strict=True) if is_prompt
    ]
    assert prompt == [5]


def test_a_placeholder_is_never_a_target():
    with pytest.raises(ConfigError, match="target"):
        lay_out([BOS, IMAGE], [False, True], placeholders())


def test_a_text_cannot_bring_its_own_align():
    with pytest.raises(ConfigError, match="<align>"):
        lay_out([BOS, 5, ALIGN], [False] * 3, placeholders())


def test_targets_must_be_as_many_as_tokens():
    with pytest.raises(ConfigError, match="one entry for each"):
        lay_out([BOS, IMAGE], [False], placeholders())


@given(
    words=st.lists(st.integers(2, 99), max_size=20),
    images=st.integers(0, 3),
    num_image_tokens=st.integers(1, 9),
    starts_with_bos=st.booleans(),
)
def test_the_length_is_known_before_the_sample_is_laid_out(
    words, images, num_image_tokens, starts_with_bos
):
    text = [BOS] * starts_with_bos + words
    layout = placeholders(num_image_tokens=num_image_tokens)
    tokens = lay_out([*text, *[IMAGE] * images], [False] * (len(text) + images), layout)
    assert len(tokens.input_ids) == layout.length(len(text), images)
    assert len(tokens.labels) == len(tokens.prompt_mask) == len(tokens.input_ids)
    assert [t for t in tokens.input_ids if t not in (IMAGE, ALIGN)] == text


def test_align_position_of_an_empty_text_is_first():
    assert align_position([], BOS) == 0


def test_as_published_the_first_token_stays_first_and_its_word_unread():
    published = placeholders(bos_token_id=None, align_after_first_token=True)
    tokens = lay_out([7, 5, IMAGE, 6], [False] * 3 + [True], published)
    assert tokens.input_ids[:3] == [7, ALIGN, 5]
    read = [t for t, mask in zip(tokens.input_ids, tokens.prompt_mask, strict=True) if mask]
    assert read == [5]
    with_bos = placeholders(align_after_first_token=True)
    said = [BOS, 5, IMAGE, 6]
    assert lay_out(said, [False] * 4, with_bos) == lay_out(said, [False] * 4, placeholders())
