"""What of a model's words is a caption."""

import pytest

from pipeline.recaption.rules import judged


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("A red fire truck.", "A red fire truck."),
        (" A boat\n on a   lake\t", "A boat on a lake"),
        ("A \0dog", "A dog"),
        ("a very, very big dog", "a very, very big dog"),
        ("a man and a woman and a child and a dog", "a man and a woman and a child and a dog"),
        ("New York, New York", "New York, New York"),
        ("I love Paris: a print", "I love Paris: a print"),
        ("Sorrel growing in a meadow", "Sorrel growing in a meadow"),
        ("家族 👨‍👩‍👧", "家族 👨‍👩‍👧"),
        ("می‌خواهم", "می‌خواهم"),
    ],
)
def test_a_caption_stands_on_one_line(text, stored):
    found = judged(text, is_finished=True)
    assert (found.text, found.refused) == (stored, None)


@pytest.mark.parametrize(
    ("text", "is_finished", "reason"),
    [
        ("", True, "empty"),
        (" \n\0 ", True, "empty"),
        ("A dog that runs over", False, "unfinished"),
        ("A dog \x1b[31m in red", True, "no_text"),
        ("A dog \u202e god a", True, "no_text"),
        ("A dog \ufffd\ufffd", True, "no_text"),
        ("\ue000", True, "no_text"),
        ("...!", True, "no_text"),
        ("a dog dog dog dog", True, "repeating"),
        ("a cat, a cat, A cat", True, "repeating"),
        ("on the table on the table on the table", True, "repeating"),
        ("I'm sorry, but I can't help with that.", True, "refusal"),
        ("Sorry, I see nothing", True, "refusal"),
        ("I cannot see the image", True, "refusal"),
        ("I can't tell", True, "refusal"),
        ("I do not see a picture.", True, "refusal"),
        ("As an AI language model, I", True, "refusal"),
        ("Unfortunately, I cannot", True, "refusal"),
        ("I am unable to describe it", True, "refusal"),
    ],
)
def test_what_is_no_caption_is_refused_with_a_reason(text, is_finished, reason):
    assert judged(text, is_finished).refused == reason


def test_what_a_terminal_would_obey_is_never_stored():
    assert judged("A \x1b[2Jdog\u202e", True).text == "A [2Jdog"
    assert judged("\x07\x1b", True).text is None
