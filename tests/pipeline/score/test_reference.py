from pipeline.score.reference import reference_rows


def test_the_reference_is_an_even_choice_of_all_shards():
    assert reference_rows((1, 0)) == [(0, 2048), (1, 2048)]
    chosen = reference_rows(tuple(range(1000)))
    assert len(chosen) == 64
    assert {rows for _, rows in chosen} == {64}
    assert chosen[0][0] == 0 and chosen[-1][0] > 980
