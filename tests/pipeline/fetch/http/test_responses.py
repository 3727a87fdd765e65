import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.fetch.http.urls import redirected
from schemas.errors import RejectReason, SampleRejected

BASE = URL("http://a.test/x/y.jpg?z=1")


@given(st.text(max_size=30) | st.text(alphabet="[]@:/?#%x1.\\ ", max_size=12))
def test_any_location_leads_to_a_url_or_is_rejected(location: str) -> None:
    for text in (location, f"http://{location}", f"//{location}"):
        try:
            url = redirected(BASE, text)
        except SampleRejected as rejected:
            assert rejected.reason in (RejectReason.BAD_REDIRECT, RejectReason.FORBIDDEN_SCHEME)
        else:
            assert isinstance(url, URL)


@pytest.mark.parametrize("location", ["", "http://][@", "http://[:x]/", "http://[::1/"])
def test_a_location_that_is_no_url_is_a_bad_redirect(location: str) -> None:
    with pytest.raises(SampleRejected) as raised:
        redirected(BASE, location)
    assert raised.value.reason is RejectReason.BAD_REDIRECT
