import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.errors import InvalidRequestError
from python_backend.sampling_params import SamplingParams


def test_empty_object_gives_the_defaults():
    assert SamplingParams.from_json("{}") == SamplingParams()
    assert SamplingParams().to_json() == "{}"


def test_null_means_the_default():
    assert SamplingParams.from_json(b'{"temperature":null,"top_k":null}') == SamplingParams()


def test_json_lists_become_tuples_and_bias_keys_become_token_ids():
    params = SamplingParams.from_json(
        '{"stop":["a","b"],"stop_token_ids":[7],"logit_bias":{"12":-100,"3":0.5},"temperature":0}'
    )
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (7,)
    assert dict(params.logit_bias) == {12: -100.0, 3: 0.5}
    assert isinstance(params.temperature, float)
    assert params.is_greedy


def test_json_has_only_what_differs_from_the_defaults():
    params = SamplingParams(temperature=0.5, stop=("é",), logit_bias={5: 1.0}, n=1)
    assert json.loads(params.to_json()) == {
        "temperature": 0.5,
        "stop": ["é"],
        "logit_bias": {"5": 1.0},
    }


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        SamplingParams,
        max_tokens=st.none() | st.integers(5, 100),
        min_tokens=st.integers(0, 5),
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1),
        top_k=st.none() | st.integers(1, 1000),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop=st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple),
        logit_bias=st.dictionaries(st.integers(0, 300_000), st.floats(-100, 100), max_size=4),
        ignore_eos=st.booleans(),
        logprobs=st.none() | st.integers(0, 20),
        prompt_logprobs=st.none() | st.integers(0, 20),
        skip_special_tokens=st.booleans(),
        return_token_ids=st.booleans(),
        return_timing=st.booleans(),
        priority=st.integers(-(2**31) + 1, 2**31 - 1),
    )
)
def test_json_round_trip_keeps_every_field(params):
    assert SamplingParams.from_json(params.to_json()) == params
    assert SamplingParams.from_json(params.to_json().encode()) == params


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("top_k", 0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("seed", 2**63),
        ("n", 0),
        ("n", 129),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("cache_salt", ""),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("logprobs", 21),
        ("logprobs", -1),
    ],
)
def test_value_outside_its_limits_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequestError, match=rf"^{field} is .*; it must be ") as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("stop", ("a", ""), "stop[1]"),
        ("stop", ("x" * 1025,), "stop[0]"),
        ("stop", ("x",) * 17, "stop"),
        ("stop_token_ids", (3, -1), "stop_token_ids[1]"),
        ("logit_bias", {-1: 0.0}, "logit_bias"),
        ("logit_bias", {4: 100.5}, "logit_bias[4]"),
    ],
)
def test_bad_item_of_a_collection_is_named(field, value, param):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == param


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(InvalidRequestError, match=r"min_tokens is 6.*max_tokens, which is 5"):
        SamplingParams(min_tokens=6, max_tokens=5)


def test_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRequestError, match=r"'tempratur' .*choose from .*temperature") as c:
        SamplingParams.from_json('{"tempratur":1}')
    assert c.value.code == "unknown_parameter"
    assert c.value.param == "tempratur"


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"max_tokens":true}', "max_tokens"),
        ('{"max_tokens":5.0}', "max_tokens"),
        ('{"temperature":"hot"}', "temperature"),
        ('{"temperature":false}', "temperature"),
        ('{"ignore_eos":1}', "ignore_eos"),
        ('{"stop":"a"}', "stop"),
        ('{"stop":["a",null]}', "stop[1]"),
        ('{"stop_token_ids":[1,"2"]}', "stop_token_ids[1]"),
        ('{"stop_token_ids":{}}', "stop_token_ids"),
        ('{"logit_bias":[1]}', "logit_bias"),
        ('{"logit_bias":{"1":"a"}}', "logit_bias[1]"),
        ("[1]", None),
    ],
)
def test_value_of_another_type_is_refused(text, param):
    with pytest.raises(InvalidRequestError, match="must be") as caught:
        SamplingParams.from_json(text)
    assert caught.value.code == "invalid_type"
    assert caught.value.param == param


@pytest.mark.parametrize(
    "text",
    [
        '{"temperature":NaN}',
        '{"temperature":Infinity}',
        '{"temperature":1e999}',
        '{"temperature":1' + "0" * 400 + "}",
        '{"logit_bias":{"1":NaN}}',
        '{"logit_bias":{"one":1}}',
        '{"logit_bias":{"-1":1}}',
        '{"seed":1' + "0" * 400 + "}",
    ],
)
def test_number_that_is_not_finite_or_no_token_id_is_an_invalid_value(text):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams.from_json(text)
    assert caught.value.code == "invalid_value"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "text", ["", "{", b"\xff{}", "[" * 100_000, '{"seed":1' + "0" * 5000 + "}"]
)
def test_text_that_is_no_json_is_an_invalid_request(text):
    with pytest.raises(InvalidRequestError, match="not valid JSON") as caught:
        SamplingParams.from_json(text)
    assert caught.value.code == "invalid_json"


def test_logit_bias_cannot_be_changed_from_outside():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 3.0
    assert params.logit_bias[1] == 2.0
    with pytest.raises(TypeError):
        params.logit_bias[1] = 4.0


def test_equal_params_hash_alike():
    assert hash(SamplingParams(logit_bias={1: 2.0})) == hash(SamplingParams(logit_bias={1: 2.0}))
