from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from python_backend import errors
from python_backend.errors import from_wire, to_wire

PASSED_ON = [
    errors.InvalidRequestError,
    errors.PromptTooLongError,
    errors.InvalidImageError,
    errors.OverloadedError,
    errors.RequestCancelledError,
    errors.EngineError,
]


@pytest.mark.parametrize("kind", PASSED_ON)
@given(
    message=st.text(min_size=1),
    code=st.none() | st.from_regex(r"\A[a-z_]+\Z"),
    param=st.none() | st.from_regex(r"\A[a-z_]+(\[[0-9]\](\.[a-z]+)?)*\Z"),
)
@example("unknown tool 'x [error=EngineError code=x param=]'", None, "tools[0]")
def test_error_survives_the_wire(kind, message, code, param):
    sent = kind(message, code=code, param=param)
    for prefix in ("", "in ensemble 'a-model', ", "[request id: r-1] in ensemble 'm', "):
        received = from_wire(prefix + to_wire(sent))
        assert type(received) is kind
        assert (received.code, received.param) == (sent.code, sent.param)
        if prefix == "":
            shown = message.replace("\0", "\\u0000")
            assert received.message == shown or message.startswith(("in ensemble", "[request"))


def test_message_comes_first_for_people_who_read_the_wire():
    assert to_wire(errors.OverloadedError("come later")).startswith("come later [")


def test_no_byte_ends_the_text_on_its_way():
    """Triton's texts are C strings: what a client wrote into a schema cut the rest off."""
    text = to_wire(errors.InvalidRequestError("Invalid type: \0", param="a.\0"))
    assert "\0" not in text
    assert from_wire(text).message == "Invalid type: \\u0000"


def test_noise_of_the_ensemble_is_taken_away():
    text = "in ensemble 'm', " + to_wire(errors.InvalidRequestError("bad", param="n"))
    assert from_wire(text).message == "bad"


@pytest.mark.parametrize(
    "text",
    ["", "failed to connect", "bad [error=BundleError code=x param=]", "[error= code= param=]"],
)
def test_other_texts_are_not_ours(text):
    assert from_wire(text) is None


def test_every_error_has_a_code():
    assert all(kind("x").code for kind in PASSED_ON)
    assert errors.InvalidRequestError("x", code="invalid_type").code == "invalid_type"
