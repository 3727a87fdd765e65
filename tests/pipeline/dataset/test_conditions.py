import pyarrow as pa
import pytest

from pipeline.dataset.conditions import (
    Condition,
    ConditionRunner,
    checked_condition,
    closed_connection,
)
from schemas.errors import ConfigError
from schemas.records import TRAIN_SCHEMA

ROWS = {
    "caption": ["a cat", "two dogs", None],
    "width": [300, 200, None],
    "alignment_level": [8, 6, None],
    "more_image_bytes": [None, [5, 9], [1]],
}
TABLE = pa.table(
    {name: pa.array(ROWS.get(name, [None] * 3), TRAIN_SCHEMA.field(name).type) for name in ROWS}
)


def chosen(text: str) -> list[bool]:
    runner = ConditionRunner(checked_condition(text))
    found = runner.matches(TABLE).tolist()
    runner.close()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alignment_level >= 6 and width >= 256", [True, False, False]),
        ("samples.width < 256 -- small ones", [False, True, False]),
        ("caption ILIKE '%CAT%' or width is null", [True, False, True]),
        ("len(list_filter(more_image_bytes, lambda x: x > 4)) = 2", [False, True, False]),
        ("width + 1 > 300 or width - alignment_level < 0 or -width > 0", [True, False, False]),
        ("true", [True, True, True]),
        ("null", [False, False, False]),
    ],
)
def test_a_condition_chooses_the_rows_that_sql_would(text, expected):
    if text == "null":
        with pytest.raises(ConfigError, match="give what is true or false"):
            checked_condition(text)
        return
    assert chosen(text) == expected


def test_a_condition_knows_the_columns_that_it_reads():
    condition = checked_condition("Width > 3 and samples.key is not null")
    assert condition == Condition("Width > 3 and samples.key is not null", ("key", "width"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width >", "no SQL condition"),
        ("", "--where is empty"),
        ("width > 3; DROP TABLE samples", "no SQL condition"),
        ("width = 1) OR (1 = 1", "no SQL condition"),
        ("width > 3 ORDER BY 1", "no SQL condition"),
        ("width > 3 UNION SELECT true", "no SQL condition"),
        ("widht > 3", r"widht.*The columns are key, url"),
        ("width", "give what is true or false"),
        ("sum(width) > 3", "aggregate"),
        ("row_number() OVER () < 3", "window function"),
        ("width > (SELECT count(*) FROM '/etc/passwd')", "subquery"),
        ("width IN (SELECT 1 FROM read_csv('http://10.0.0.1/'))", "subquery"),
        ("EXISTS (FROM duckdb_settings())", "subquery"),
        ("random() < 0.5", "may not use random"),
        ("current_date > DATE '2020-01-01'", "may not use current_date"),
        ("width > $1", "a parameter"),
        ("age(TIMESTAMP '2020-01-01') > INTERVAL 3 DAY", "may not use age"),
        ("len(repeat(caption, 3000000000)) > 0", "may not use repeat: it may take any memory"),
        ("len(range(100000000000)) > 0", "may not use range: it may take any memory"),
        ("pg_sleep(1e9) is null", "may not use pg_sleep"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused_before_anything_runs(text, message):
    with pytest.raises(ConfigError, match=message):
        checked_condition(text)


def test_a_value_that_does_not_convert_is_named():
    with pytest.raises(ConfigError, match=r"'a cat'.*try_cast"):
        chosen("caption::int > 3")
    assert chosen("try_cast(caption as int) > 3") == [False] * 3


def test_the_database_reads_no_file_but_those_that_it_was_allowed(tmp_path):
    inside, outside = tmp_path / "it's mine", tmp_path / "other"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.csv").write_text("x\n1\n")
    name = str(inside).replace("'", "''")
    with closed_connection([str(inside)]) as connection:
        assert connection.sql(f"SELECT * FROM read_csv('{name}/a.csv')").fetchall() == [(1,)]
        for query in (
            f"SELECT * FROM read_csv('{outside}/a.csv')",
            f"COPY (SELECT 1) TO '{outside}/b.csv'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
            "SELECT * FROM TABLE_OF_PYTHON",
        ):
            with pytest.raises(Exception, match="Error"):
                connection.sql(query).fetchall()
    assert not (outside / "b.csv").exists()
