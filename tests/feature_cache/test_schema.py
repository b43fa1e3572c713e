"""Texts and names survive the way into a cache and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat.errors import DataError
from ecgfeat.feature_cache.format import column_name, decode_texts, encode_texts, link_name

any_bytes = st.binary(max_size=20).filter(lambda data: b"\0" not in data)


@given(st.lists(any_bytes.map(lambda data: data.decode("utf-8", "surrogateescape"))))
def test_any_text_comes_back(texts):
    assert decode_texts(encode_texts(texts, "a text")) == tuple(texts)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_column_name_comes_back_and_no_two_are_alike(name, other):
    link = link_name(name)
    assert column_name(link) == name
    assert "/" not in link
    assert link not in ("", ".")
    assert (link_name(other) == link) == (other == name)


def test_a_text_ends_at_its_first_nul():
    assert decode_texts(np.array([b"ab\0rest", b""])) == ("ab", "")


def test_a_name_that_is_too_long_is_refused():
    with pytest.raises(DataError) as caught:
        link_name("ä" * 128)
    assert str(caught.value) == (
        f"the column name {'ä' * 40!r}… is too long: a cache takes 255 bytes. Give the column "
        "a shorter name."
    )
