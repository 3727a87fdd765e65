import pickle

from schemas.stages import Stage


def test_a_stage_knows_its_folder_marker_section_and_order():
    names = ["read", "fetch", "score", "deduplicate", "level", "recaption", "pack"]
    assert [stage.value for stage in Stage] == names
    assert [stage.number for stage in Stage] == list(range(7))
    assert len({stage.folder for stage in Stage}) == 7
    assert Stage("level").section == "levels"
    assert Stage.FETCH.marker == "_stats.json"


def test_a_stage_goes_on_with_itself_and_those_after_it():
    assert Stage.LEVEL.onward == (Stage.LEVEL, Stage.RECAPTION, Stage.PACK)
    assert Stage.READ.onward == tuple(Stage)


def test_a_stage_is_the_same_in_another_process():
    assert all(pickle.loads(pickle.dumps(stage)) is stage for stage in Stage)
