"""Values out of JSON files, held against types."""

from typing import Any, Literal, NotRequired, TypedDict

import pytest

from model.shapes import misshapen


class Inner(TypedDict):
    n: int


class Outer(TypedDict):
    word: Literal["a", "b"]
    share: float | None
    inner: dict[str, list[Inner]]
    more: NotRequired[str | Inner]


WHOLE: dict[str, Any] = {"word": "a", "share": 1, "inner": {"x": [{"n": 1, "other": None}]}, "more": {"n": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"share": 0.5, "more": "x", "unknown": [1]}, None),
        ({"share": None, "inner": {}}, None),
        ({"word": "c"}, "word is 'c', but it must be one of a, b"),
        ({"share": "1"}, "share is '1', but it must be a number or null"),
        ({"share": True}, "share is True, but it must be a number or null"),
        ({"inner": {"x": {"n": 1}}}, "inner.x is {'n': 1}, but it must be a list"),
        ({"inner": {"x": [{"n": 1}, {"n": 1.5}]}}, "inner.x[1].n is 1.5, but it must be an integer"),
        ({"inner": {"x": [{}]}}, "inner.x[0].n is missing"),
        ({"more": {"n": "y" * 99}}, f"more.n is '{'y' * 56}..., but it must be an integer"),
        ({"more": 7}, "more is 7, but it must be a text or an object"),
    ],
)
def test_the_first_value_of_another_type_is_named(changes: dict[str, Any], said: str | None) -> None:
    assert misshapen(WHOLE | changes, Outer) == said


@pytest.mark.parametrize("value", [[1], 7, None, "x"])
def test_what_is_no_object_is_said(value: Any) -> None:
    assert misshapen(value, Outer) == misshapen(value, dict) == f"it is {value!r}, but it must be an object"
