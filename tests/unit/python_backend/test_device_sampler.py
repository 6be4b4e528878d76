"""The sampler on a device chooses what the sampler on the host chooses, and copies no more than that."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fake_cupy import TRANSFERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_backend.errors import EngineError
from python_backend.sampler import Sampler
from python_backend.sampler_state import SamplerState
from python_backend.sampling_params import SamplingParams

EOS = 3
ONCE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def cupy(trt):
    return sys.modules["cupy"]


def _states(params, vocab_size, module):
    return [
        SamplerState(p, [1, 2, 2, 9], vocab_size, i, (EOS,), module) for i, p in enumerate(params)
    ]


PARAMS = st.builds(
    SamplingParams,
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 1e-300, 0.7, 1.0, 1.8]),
    top_k=st.sampled_from([None, 1, 7, 10**6]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 0.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    presence_penalty=st.sampled_from([0.0, -0.7]),
    logit_bias=st.sampled_from([{}, {5: 3.0, 8: -2.5}]),
    min_tokens=st.sampled_from([0, 3]),
    logprobs=st.sampled_from([None, 0, 4]),
)


@ONCE
@given(
    params=st.lists(PARAMS, min_size=1, max_size=5),
    vocab_size=st.sampled_from([12, 256, 700]),
    logits_seed=st.integers(0, 99),
)
def test_tokens_and_logprobs_are_those_of_the_host(cupy, params, vocab_size, logits_seed):
    rng = np.random.default_rng(logits_seed)
    on_host, on_device = (_states(params, vocab_size, m) for m in (np, cupy))
    sampler = Sampler()
    for _ in range(5):
        logits = rng.normal(0, 2, (len(params), vocab_size)).astype(np.float32)
        device_logits = cupy.asarray(logits)
        expected = sampler.sample(logits, on_host)
        actual = sampler.sample(device_logits, on_device)
        for one, other, *states in zip(expected, actual, on_host, on_device, strict=True):
            assert other.token_id == one.token_id
            assert other.logprob == pytest.approx(one.logprob)
            assert (other.top_logprobs is None) == (one.top_logprobs is None)
            for mine, theirs in zip(one.top_logprobs or (), other.top_logprobs or (), strict=True):
                assert mine == pytest.approx(theirs)
            for state in states:
                state.append(one.token_id)


def test_a_penalty_moves_no_more_in_a_long_answer_than_in_a_short_one(cupy):
    params = SamplingParams(temperature=0, repetition_penalty=1.2, frequency_penalty=0.1)
    (state,) = _states([params], 1000, cupy)
    for token_id in range(500):
        state.append(token_id)
    TRANSFERS.to_device.clear()
    for token_id in (1, 2, 600):
        state.append(token_id)
        Sampler().sample(cupy.zeros((1, 1000), np.float32), [state])
    assert TRANSFERS.to_device == [176, 176, 176]  # where everything is, and the new token
    assert TRANSFERS.to_host == [8, 8, 8]


def test_what_several_rows_change_is_moved_and_launched_once(cupy):
    params = [
        SamplingParams(temperature=0, repetition_penalty=1.2),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logit_bias={1: 2.0}, min_tokens=4),
    ]
    states = _states(params, 1000, cupy)
    TRANSFERS.to_device.clear()
    Sampler().sample(cupy.zeros((3, 1000), np.float32), states)
    assert TRANSFERS.to_device == [2 * 176]


def test_counts_that_no_kernel_wrote_are_written(cupy):
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    (state,) = _states([params], 1000, cupy)
    for token_id in [*range(0, 300, 2), *range(300)]:
        state.append(token_id)
    logits = cupy.zeros((1, 1000), np.float32)
    Sampler().sample(logits, [state])
    assert logits.get()[0, :300].tolist() == [-2.0, -1.0] * 150


def test_rows_of_every_kind_come_back_in_one_copy(cupy):
    kinds = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.5)]
    logits = cupy.asarray(np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32))
    Sampler().sample(logits, _states(kinds, 300, cupy))
    assert TRANSFERS.to_host == [3 * 8]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logit_that_is_no_number_fails_the_step(cupy, bad, temperature):
    logits = np.zeros((3, 50), np.float32)
    logits[1, 20] = bad
    states = _states([SamplingParams(temperature=temperature)] * 3, 50, cupy)
    with pytest.raises(EngineError, match=r"rows \[1\]"):
        Sampler().sample(cupy.asarray(logits), states)


def test_row_without_any_token_fails_the_step(cupy):
    nothing = np.full((1, 5), -np.inf, np.float32)
    with pytest.raises(EngineError, match=r"rows \[0\]"):
        Sampler().sample(cupy.asarray(nothing), _states([SamplingParams()], 5, cupy))
    params = SamplingParams(min_tokens=1, stop_token_ids=(0, 1, 2))
    with pytest.raises(EngineError, match="no token"):
        Sampler().sample(cupy.zeros((1, 4), np.float32), _states([params], 4, cupy))
