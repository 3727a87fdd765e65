from pipeline.report.pair_groups import script_of


def test_the_script_is_that_of_most_letters():
    texts = {
        "A cat, 12": "Latin",
        "猫 a": "Latin",
        "猫です": "Hiragana",
        "Ärger": "Latin",
        "😀": "Latin",
    }
    assert {text: script_of(text) for text in texts} == texts
