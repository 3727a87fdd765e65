import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.credentials import refuse_passwords, texts_of, without_credentials
from schemas.errors import ConfigError

CLEANED = {
    # user, password, both, neither
    "http://u:p@h/x": "http://h/x",
    "http://u@h/x": "http://h/x",
    "http://:p@h/x": "http://h/x",
    "http://u:@h/x": "http://h/x",
    "http://@h/x": "http://h/x",
    "http://u:p@/x": "http:///x",
    "http://u:p@": "http://",
    "http://u:p@h": "http://h",
    "http://u:p@h:8080/x": "http://h:8080/x",
    "http://u:p@[::1]:80/x": "http://[::1]:80/x",
    "http://u:p@[bad/x": "http://[bad/x",
    # several signs: the last one before the path ends the password
    "http://a@b@h/x": "http://h/x",
    "http://u:p@q@h/x?y=@": "http://h/x?y=@",
    "http://u:p@h/x@y": "http://h/x@y",
    "http://u:p@h?x=a@b": "http://h?x=a@b",
    "http://u:p@h#a@b": "http://h#a@b",
    # odd users and passwords
    "http://u%40corp:p%3A@h/x": "http://h/x",
    "http://u p:p p@h/x": "http://h/x",
    "http://ü:пароль@h/x": "http://h/x",
    "http://u:p\n@h/x": "http://h/x",
    "http://u:[p]@h/x": "http://h/x",
    "http://u:p\\q@h/x": "http://h/x",
    "http://u:p@h\\@x/y": "http://x/y",
    # schemes, their case, and none
    "HTTPS://U:P@H/X": "HTTPS://H/X",
    "ftp://u:p@h/x": "ftp://h/x",
    "s3://key:secret@bucket/x": "s3://bucket/x",
    "memory://u:p@h/0.tar": "memory://h/0.tar",
    "simplecache::s3://key:secret@bucket/x": "simplecache::s3://bucket/x",
    "x y://u:p@h/x": "x y://h/x",
    "ht\ttp://u:p@h/x": "ht\ttp://h/x",
    "://u:p@h/x": "://h/x",
    "//u:p@h/x": "//h/x",
    " http://u:p@h/x": " http://h/x",
    "\n//u:p@h/x": "\n//h/x",
    # slashes as only browsers take them
    "http:/u:p@h/x": "http:/h/x",
    "http:u:p@h/x": "http:h/x",
    "http:///u:p@h/x": "http:///h/x",
    "http:\\\\u:p@h\\x": "http:\\\\h\\x",
    "http:/\\u:p@h/x": "http:/\\h/x",
    "\\\\u:p@h\\x": "\\\\h\\x",
    "http://u:p@h\\x@y/z": "http://y/z",
    # not ours to judge: no URL of one's own
    "http://a@http://u:p@h/": "http://http://u:p@h/",
}

AS_THEY_ARE = [
    "",
    "@",
    "h",
    "u:p@h",
    "http://h/x",
    "http://h/a@b",
    "http://h?a@b",
    "http://h#a@b",
    "http://h/http://u:p@h/",
    "http://u:pa/ss@h/",
    "s3://bucket/a@2x.jpg",
    "file:///folder/a@b.jpg",
    "folder/with@sign.jpg",
    "folder//a@b.jpg",
    "/folder/a@b.jpg",
    "C:\\\\images\\me@home.jpg",
    "mailto:me@h.example",
    "data:image/png;base64,//a@b",
    "\\\\server\\share\\me@home.jpg",
    "img@2x.png",
]


@pytest.mark.parametrize(("url", "cleaned"), CLEANED.items())
def test_a_url_loses_its_user_and_password_and_nothing_else(url: str, cleaned: str) -> None:
    assert without_credentials(url) == cleaned


@pytest.mark.parametrize("url", AS_THEY_ARE)
def test_what_has_no_user_stays_as_it_is(url: str) -> None:
    assert without_credentials(url) == url


@given(
    st.sampled_from(["http://", "HTTPS://", "//", "s3://", "http:\\\\", "http:/"]),
    st.text(st.characters(exclude_characters="/?#\\", exclude_categories=["Cs"]), max_size=8),
)
def test_no_part_of_a_password_is_left_and_cleaning_again_changes_nothing(
    start: str, password: str
) -> None:
    cleaned = without_credentials(f"{start}user:{password}@host.example/x.jpg")
    assert cleaned == f"{start}host.example/x.jpg"
    assert without_credentials(cleaned) == cleaned


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:secret@bucket/x",
        "simplecache::https://me:secret@host.example/x",
        "HTTPS://:secret@h/x",
    ],
)
def test_a_password_in_a_path_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="was given with a password in it") as refused:
        refuse_passwords(["plain/path", url])
    assert "secret" not in str(refused.value)


def test_an_address_with_a_name_alone_is_no_password() -> None:
    paths = ["abfs://container@account.dfs.core.windows.net/a:b", "sftp://me@host/x", "a@b:c@d"]
    refuse_passwords([*paths, "https://h:80/@x", "s3://bucket/a:b@c", "{caption}: http://h"])


def test_all_texts_of_a_configuration_are_found() -> None:
    values = {"read": {"names": ("a", ["b"]), "number": 3}, "name": "c", "none": None}
    assert list(texts_of(values)) == ["a", "b", "c"]
