from schemas.document import DOCUMENT, schema_document


def test_the_document_is_current():
    current = DOCUMENT.read_text() == schema_document()
    assert current, "run `python -m schemas.document` and commit docs/schema.md"
