import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.errors import EngineError, InvalidRequestError
from python_backend.sampler import Sampler, largest_ids
from python_backend.sampler_state import SamplerState
from python_backend.sampling_params import SamplingParams

EOS = 3


def _state(params, vocab_size, prompt=(), choice_index=0):
    return SamplerState(params, prompt, vocab_size, choice_index, (EOS,))


def _logits(seed, rows, vocab_size, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, (rows, vocab_size)).astype(np.float32)


def _draws(params, row, count):
    """How often each token is drawn from the same logits."""
    state, sampler = _state(params, len(row)), Sampler()
    tokens = [sampler.sample(row[None].copy(), [state])[0].token_id for _ in range(count)]
    return np.bincount(tokens, minlength=len(row))


def _softmax(row, temperature=1.0):
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return weights / weights.sum()


def _reference_support(row, params):
    """Tokens that temperature, top-k, top-p and min-p keep, by a full sort in float64."""
    order = np.argsort(-row, kind="stable")
    order = order[: params.top_k]
    probs = _softmax(row[order], params.temperature)
    before = np.cumsum(probs) - probs
    is_kept = before < params.top_p
    is_kept[0] = True
    is_kept &= probs >= params.min_p * probs[0]
    return set(order[is_kept].tolist())


def test_temperature_zero_takes_the_largest_logit_and_the_lowest_id_of_equals():
    logits = np.array([[0, 5, 5, 1], [9, 0, 9, 9], [-4, -3, -2, -1]], dtype=np.float32)
    states = [_state(SamplingParams(temperature=0), 4) for _ in logits]
    tokens = [sampled.token_id for sampled in Sampler().sample(logits, states)]
    assert tokens == [1, 0, 3]


def test_greedy_tokens_carry_no_logprobs_unless_asked():
    (sampled,) = Sampler().sample(_logits(0, 1, 8), [_state(SamplingParams(temperature=0), 8)])
    assert sampled.logprob is None
    assert sampled.top_logprobs is None


def test_no_rows_give_no_tokens():
    assert Sampler().sample(np.zeros((0, 8), dtype=np.float32), []) == []


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    logits_seed=st.integers(0, 99),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([None, 1, 20]),
)
def test_same_seed_gives_the_same_tokens(seed, logits_seed, top_p, top_k):
    params = SamplingParams(seed=seed, top_p=top_p, top_k=top_k)
    logits = _logits(logits_seed, 12, 100, scale=1)
    runs = []
    for _ in range(2):
        state = _state(params, 100)
        runs.append([Sampler().sample(row[None].copy(), [state])[0].token_id for row in logits])
    assert runs[0] == runs[1]


def test_choices_of_one_seed_draw_different_tokens():
    row = np.zeros((1, 1000), dtype=np.float32)
    params = SamplingParams(seed=5, n=2)
    states = [_state(params, 1000, choice_index=i) for i in range(2)]
    tokens = [[Sampler().sample(row, [s])[0].token_id for _ in range(4)] for s in states]
    assert tokens[0] != tokens[1]


def test_without_a_seed_two_requests_draw_different_tokens():
    row = np.zeros((1, 100_000), dtype=np.float32)
    states = [_state(SamplingParams(), 100_000) for _ in range(2)]
    tokens = [[Sampler().sample(row, [s])[0].token_id for _ in range(4)] for s in states]
    assert tokens[0] != tokens[1]


def test_batch_mates_do_not_change_a_row():
    vocab_size = 700
    kinds = [
        SamplingParams(seed=1),
        SamplingParams(temperature=0),
        SamplingParams(seed=2, top_p=0.8),
        SamplingParams(seed=3, top_k=5, min_p=0.01),
        SamplingParams(seed=4, repetition_penalty=1.3, logprobs=3),
        SamplingParams(seed=5, frequency_penalty=0.5, logit_bias={7: 5.0}, min_tokens=4),
    ]
    steps = [_logits(step, len(kinds), vocab_size) for step in range(8)]

    def run(rows):
        states = {i: _state(kinds[i], vocab_size, prompt=[1, 2, 3]) for i in rows}
        sampler, result = Sampler(), {i: [] for i in rows}
        for logits in steps:
            batch = sampler.sample(logits[list(rows)].copy(), [states[i] for i in rows])
            for i, sampled in zip(rows, batch, strict=True):
                states[i].append(sampled.token_id)
                result[i].append(sampled)
        return result

    together = run((0, 1, 2, 3, 4, 5))
    reordered = run((5, 3, 1, 0, 2, 4))
    for i in range(len(kinds)):
        assert run((i,))[i] == together[i] == reordered[i]


def test_one_sampler_serves_vocabularies_of_several_sizes():
    sampler = Sampler()
    for vocab_size in (5, 1000, 256, 7):
        state = _state(SamplingParams(seed=0), vocab_size)
        tokens = {sampler.sample(_logits(1, 1, vocab_size), [state])[0].token_id for _ in range(20)}
        assert max(tokens) < vocab_size


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_without_cuts_tokens_are_drawn_by_their_probability(temperature):
    row = _logits(3, 1, 12, scale=1)[0]
    count = 4000
    observed = _draws(SamplingParams(seed=11, temperature=temperature), row, count)
    expected = count * _softmax(row, temperature)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 31.3  # 0.1 % of chi-square with 11 degrees of freedom


def test_a_draw_over_many_blocks_follows_the_probabilities():
    row = np.full(2000, -20, dtype=np.float32)
    likely = [0, 255, 256, 1023, 1999]
    row[likely] = np.log([0.1, 0.2, 0.3, 0.25, 0.15])
    observed = _draws(SamplingParams(seed=12), row, 3000)[likely]
    expected = 3000 * np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    assert ((observed - expected) ** 2 / expected).sum() < 18.5  # 0.1 %, 4 degrees of freedom


def test_cut_distribution_keeps_the_proportions():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    observed = _draws(SamplingParams(seed=13, top_p=0.65), row, 3000)
    expected = 3000 * np.array([4 / 7, 3 / 7])
    assert observed[2:].sum() == 0
    assert ((observed[:2] - expected) ** 2 / expected).sum() < 10.9  # 0.1 %, 1 degree of freedom


@settings(max_examples=30, deadline=None)
@given(
    logits_seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.7, 1.0, 1.5]),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.2, 0.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_support_of_top_k_top_p_and_min_p_equals_a_full_sort(
    logits_seed, temperature, top_k, top_p, min_p
):
    row = _logits(logits_seed, 1, 10, scale=0.7)[0]
    params = SamplingParams(
        seed=logits_seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    drawn = set(np.flatnonzero(_draws(params, row, 400)).tolist())
    assert drawn <= _reference_support(row, params)


@pytest.mark.parametrize(
    "cuts",
    [
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7, "min_p": 0.1},
    ],
)
def test_every_token_of_the_support_is_drawn(cuts):
    row = _logits(21, 1, 10, scale=0.7)[0]
    params = SamplingParams(seed=1, **cuts)
    drawn = set(np.flatnonzero(_draws(params, row, 1500)).tolist())
    assert drawn == _reference_support(row, params)


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    "cuts",
    [{"top_p": 0.9}, {"top_p": 0.05}, {"top_p": 0.9, "min_p": 0.02}, {"min_p": 0.5}, {"top_k": 7}],
)
def test_large_vocabulary_draws_what_a_full_sort_would_draw(scale, cuts):
    row = _logits(5, 1, 5000, scale=scale)[0]
    params = SamplingParams(seed=9, **cuts)
    order = np.argsort(-row, kind="stable")
    order = order[: len(_reference_support(row, params))]
    sums = np.cumsum(_softmax(row[order]))
    expected_generator = _state(params, len(row)).generator
    state, sampler = _state(params, len(row)), Sampler()
    for _ in range(25):
        place = np.searchsorted(sums, expected_generator.random() * sums[-1], side="right")
        assert sampler.sample(row[None].copy(), [state])[0].token_id == order[place]


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}])
def test_tiny_temperature_draws_the_most_likely_token(cuts):
    row = _logits(6, 1, 300)[0]
    row[17] = np.finfo(np.float32).min
    observed = _draws(SamplingParams(temperature=1e-300, **cuts), row, 20)
    assert observed[row.argmax()] == 20


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=300),
    data=st.data(),
)
def test_largest_ids_are_those_of_a_stable_sort(values, data):
    values = np.array(values, dtype=np.float32)
    count = data.draw(st.integers(1, len(values)))
    expected = np.argsort(-values, kind="stable")[:count]
    assert largest_ids(values, count).tolist() == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 19), max_size=10),
    output=st.lists(st.integers(0, 19), max_size=30),
    presence=st.sampled_from([0.0, 0.7, -1.5]),
    frequency=st.sampled_from([0.0, 0.3, -0.2]),
    repetition=st.sampled_from([1.0, 1.4, 0.6]),
    bias=st.dictionaries(st.integers(0, 19), st.floats(-10, 10, width=32), max_size=3),
)
def test_bias_and_penalties_equal_a_loop_over_tokens(
    prompt, output, presence, frequency, repetition, bias
):
    params = SamplingParams(
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    state = _state(params, 20, prompt)
    for token_id in output:
        state.append(token_id)
    row = _logits(8, 1, 20)[0]
    expected = row.astype(np.float64)
    for token_id in range(20):
        expected[token_id] += bias.get(token_id, 0)
        if token_id in prompt or token_id in output:
            expected[token_id] *= 1 / repetition if expected[token_id] > 0 else repetition
        expected[token_id] -= frequency * output.count(token_id) + presence * (token_id in output)
    state.change_logits(row)
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_counts_stay_right_past_the_first_buffer():
    params = SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0)
    state = _state(params, 1000, prompt=range(100))
    for token_id in [*range(0, 300, 2), *range(300)]:
        state.append(token_id)
    row = np.full(1000, 8, dtype=np.float32)
    state.change_logits(row)
    assert row[:300].tolist() == [2.0, 3.0] * 150
    assert set(row[300:].tolist()) == {8.0}


def test_repetition_penalty_equals_hugging_face():
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    prompt, output = [4, 9, 9, 30], [2, 9, 11]
    row = _logits(2, 1, 40)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([prompt + output]), torch.from_numpy(row.copy())
    ).numpy()
    state = _state(SamplingParams(repetition_penalty=1.3), 40, prompt)
    for token_id in output:
        state.append(token_id)
    state.change_logits(row[0])
    np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_prompt_ids_outside_the_vocabulary_are_not_penalised():
    state = _state(SamplingParams(repetition_penalty=2.0), 4, prompt=[0, 4, 99, -1])
    row = np.full(4, 2, dtype=np.float32)
    state.change_logits(row)
    assert row.tolist() == [1, 2, 2, 2]


def test_end_tokens_are_not_generated_before_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(5,))
    state, sampler = _state(params, 8), Sampler()
    tokens = []
    for _ in range(4):
        logits = np.array([[0, 1, 2, 9, 3, 8, 4, 5]], dtype=np.float32)
        tokens.append(sampler.sample(logits, [state])[0].token_id)
        state.append(tokens[-1])
    assert tokens == [7, 7, EOS, EOS]


def test_ignored_end_of_sequence_is_generated_before_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=2, ignore_eos=True)
    logits = np.array([[0, 1, 2, 9]], dtype=np.float32)
    assert Sampler().sample(logits, [_state(params, 4)])[0].token_id == EOS


def test_end_of_sequence_outside_the_vocabulary_is_harmless():
    params = SamplingParams(temperature=0, min_tokens=2)
    assert Sampler().sample(_logits(0, 1, EOS), [_state(params, EOS)])[0].token_id < EOS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logit_bias_decides_the_token(temperature):
    params = SamplingParams(temperature=temperature, logit_bias={6: 100.0})
    assert Sampler().sample(_logits(1, 1, 10), [_state(params, 10)])[0].token_id == 6


def test_token_id_outside_the_vocabulary_is_an_invalid_request():
    for field, value in (("logit_bias", {10: 1.0}), ("stop_token_ids", (10,))):
        with pytest.raises(InvalidRequestError, match=f"{field} has the token id 10") as caught:
            _state(SamplingParams(**{field: value}), 10)
        assert caught.value.param == field


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_logprobs", [0, 1, 5, 20])
def test_logprobs_are_sorted_and_those_of_the_model(temperature, num_logprobs):
    params = SamplingParams(
        seed=4,
        temperature=temperature,
        top_k=3,
        logprobs=num_logprobs,
        logit_bias={0: 50.0},
        repetition_penalty=1.5,
    )
    row = _logits(7, 1, 15)
    expected = np.log(_softmax(row[0]))
    (sampled,) = Sampler().sample(row.copy(), [_state(params, 15, prompt=[1, 2])])
    assert sampled.token_id == 0
    assert sampled.logprob == pytest.approx(expected[0], abs=1e-5)
    order = np.argsort(-expected)[:num_logprobs].tolist()
    assert [token_id for token_id, _ in sampled.top_logprobs] == order
    assert [v for _, v in sampled.top_logprobs] == pytest.approx(expected[order], abs=1e-5)


def test_excluded_token_has_the_logprob_minus_infinity():
    row = np.array([[1, -np.inf, 0]], dtype=np.float32)
    (sampled,) = Sampler().sample(row, [_state(SamplingParams(temperature=0, logprobs=3), 3)])
    assert sampled.top_logprobs[2] == (1, -np.inf)


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.99}, {"top_k": 5}, {"min_p": 0.001}])
def test_excluded_token_is_never_drawn(cuts):
    row = np.array([0, -np.inf, 0, -np.inf, -np.inf], dtype=np.float32)
    observed = _draws(SamplingParams(seed=1, **cuts), row, 100)
    assert observed[[1, 3, 4]].sum() == 0
    assert observed[0] > 0 < observed[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logit_that_is_no_number_fails_the_step(temperature, bad):
    logits = _logits(0, 3, 50)
    logits[1, 20] = bad
    states = [_state(SamplingParams(temperature=temperature), 50) for _ in logits]
    with pytest.raises(EngineError, match=r"rows \[1\]"):
        Sampler().sample(logits, states)


def test_row_without_any_token_fails_the_step():
    with pytest.raises(EngineError, match=r"rows \[0\]"):
        Sampler().sample(np.full((1, 5), -np.inf, np.float32), [_state(SamplingParams(), 5)])
    params = SamplingParams(min_tokens=1, stop_token_ids=(0, 1, 2))
    with pytest.raises(EngineError, match="no token"):
        Sampler().sample(_logits(0, 1, 4), [_state(params, 4)])


def test_logits_of_another_shape_or_type_fail_the_step():
    state = _state(SamplingParams(), 5)
    for logits in (_logits(0, 2, 5), _logits(0, 1, 5).astype(np.float16), _logits(0, 1, 5)[0]):
        with pytest.raises(EngineError, match="it needs float32"):
            Sampler().sample(logits, [state])


def test_read_only_logits_are_left_alone():
    logits = _logits(0, 1, 20)
    before = logits.copy()
    logits.flags.writeable = False
    params = SamplingParams(temperature=0, logit_bias={5: 100.0})
    assert Sampler().sample(logits, [_state(params, 20)])[0].token_id == 5
    np.testing.assert_array_equal(logits, before)
