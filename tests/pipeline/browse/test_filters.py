"""From a form to a condition in SQL."""

import duckdb
import pytest

from pipeline.browse.filters import HOST, Filters, quoted


def test_filters_become_the_condition_that_select_takes(client, root, rows):
    text = client.get("/?level_from=2&level_to=3&text=NUMBER+1&host=images.example").text
    number = rows.count(
        "alignment_level in (2, 3) and lower(caption) like '%number 1%' and reason is null"
    )
    assert 0 < number < 19
    assert f"<h1>{number} row" in text
    assert f"select {root} --where" in text.replace("&#39;", "'")
    assert "alignment_level &gt;= 2 and alignment_level &lt;= 3" in text


def test_each_filter_adds_a_part_and_what_is_no_filter_is_passed_over():
    assert Filters.from_query({"colour": "red", "text": "  "}) == Filters()
    assert Filters().of_samples() == ""
    assert Filters().of_rows() == "reason is null"
    assert Filters.from_query({"state": "nonsense"}).state == "kept"
    filters = Filters.from_query({"state": "all", "score_from": " 0.5 ", "where": "width > 1 or a"})
    assert filters.of_samples() == "clip_score >= 0.5 and (width > 1 or a)"
    assert filters.of_rows() == filters.of_samples()
    rejected = Filters(state="rejected", reason="bad_url", min_side="64")
    assert rejected.of_rows() == (
        "reason is not null and reason = 'bad_url' and least(width, height) >= 64"
    )


@pytest.mark.parametrize("filters", [Filters(level_from="2.5"), Filters(score_to="high")])
def test_a_bound_that_is_no_number_is_refused_by_its_name(filters):
    with pytest.raises(ValueError, match=r"(alignment_level|clip_score) .=.*give a number"):
        filters.of_samples()


@pytest.mark.parametrize("text", ["", "it's", "'; drop table samples; --", "a\\b", "%"])
def test_a_text_cannot_leave_its_quotes(text):
    with duckdb.connect() as connection:
        assert connection.sql(f"SELECT {quoted(text)}").fetchall() == [(text,)]
    assert quoted("a\0b") == "'ab'"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Images.Example/a.jpg", "images.example"),
        ("http://user@host.example:8080/?a=//other", "host.example"),
        ("HTTPS://host.example#x", "host.example"),
        ("s3://bucket/a.jpg", "bucket"),
        ("/data/images/a.jpg", ""),
    ],
)
def test_the_host_of_a_url_is_found(url, host):
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT {HOST} FROM (SELECT ? AS url)", [url]).fetchall() == [
            (host,)
        ]
