"""Errors that cross the network."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import errors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["self", "message", "cls", "args", "kind", "data"]) | st.text(max_size=50)
WIRE = st.fixed_dictionaries(
    {}, optional={"code": JSON, "message": JSON, "data": JSON | st.dictionaries(KEYS, JSON, max_size=4)}
)


@given(JSON | WIRE)
def test_any_json_is_an_error_of_ours(value):
    error = errors.from_wire(value)
    assert isinstance(error, errors.SplitEdgeError)
    assert len(error.message) <= 500
    assert all(c.isprintable() for c in error.message)


@pytest.mark.parametrize("key", ["self", "message", "cls", "code"])
def test_data_may_have_any_key(key):
    error = errors.from_wire({"code": "codec", "message": "no", "data": {key: 1}})
    assert (type(error), error.message, error.data) == (errors.CodecError, "no", {key: 1})


def test_every_error_comes_back_as_itself():
    for kind in errors._tree(errors.SplitEdgeError).values():
        sent = kind("do this next", size=3)
        back = errors.from_wire(msgspec.json.decode(msgspec.json.encode(sent.to_wire())))
        assert (type(back), back.message, back.data) == (kind, sent.message, sent.data)


def test_a_copy_keeps_class_data_and_origin() -> None:
    error = errors.from_wire({"code": "unknown_plan", "message": "expired", "data": {"plan": "p"}})
    copy = error.copy()
    assert copy is not error
    assert (type(copy), copy.message, copy.data, copy.remote) == (type(error), error.message, error.data, True)
    assert not errors.InputError("x").copy().remote


def test_a_subclass_without_its_own_code_does_not_replace_its_parent():
    class SpecialInputError(errors.InputError):
        http_status = 413

    made = errors.from_wire(SpecialInputError("too large").to_wire())
    assert type(made) is errors.InputError
