import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from python_backend.detokenizer import Detokenizer, StopChecker, TextDelta
from python_backend.errors import BundleError, InvalidRequestError
from python_backend.sampler_state import SampledToken
from python_backend.sampling_params import SamplingParams
from python_backend.token_text import TokenText

SPECIAL = AddedToken("<|end|>", special=True)
ADDED = ["<tool>", "日本 x", "é"]
HARD_TEXT = "a😀é日e\u0301\u200d👩\u200d👩\u200d👧 ñ▁\ufffd<0x41>\n"


def _byte_level():
    """As in Qwen2: every byte, some merges, a special and three plain added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    merges = [("Ġ", "a"), ("ð", "Ł"), ("æ", "Ĺ"), ("b", "c"), ("ðŁ", "ĺ")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.add_tokens(ADDED)
    return tokenizer


def _sentencepiece(*decoder_steps):
    """Text pieces with ▁ for a space, and a token per byte."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "a", "▁a", "b▁c", "é", "日", "\u0301", "▁▁▁", " ", " d"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.decoder = decoders.Sequence(list(decoder_steps))
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.add_tokens(ADDED)
    return tokenizer


def _gemma():
    return _sentencepiece(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())


def _llama():
    return _sentencepiece(
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    )


def _metaspace():
    tokenizer = _sentencepiece()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


TOKENIZERS = {
    "byte_level": _byte_level(),
    "gemma": _gemma(),
    "llama": _llama(),
    "metaspace": _metaspace(),
}
TOKEN_TEXTS = {name: TokenText(tokenizer) for name, tokenizer in TOKENIZERS.items()}
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
each_tokenizer_of_pieces = pytest.mark.parametrize("name", ["gemma", "llama", "metaspace"])
each_tokenizer_of_bytes = pytest.mark.parametrize("name", ["byte_level", "gemma", "llama"])


def _byte_ids(name, data):
    """Tokens of single bytes; under Metaspace their text is `<0xNN>`."""
    if name == "byte_level":
        to_char = {TOKEN_TEXTS[name].to_bytes(i): i for i in range(256)}
        return [to_char[bytes([byte])] for byte in data]
    return [byte + 1 for byte in data]


def _stream(name, token_ids, params=None, sizes=()):
    """All deltas, the rest at the end, and the matched stop string."""
    detokenizer = Detokenizer(TOKEN_TEXTS[name], params or SamplingParams())
    deltas, start = [], 0
    for size in sizes:
        deltas.append(detokenizer.append(token_ids[start : start + size]).text)
        start += size
    deltas += [detokenizer.append([token_id]).text for token_id in token_ids[start:]]
    deltas.append(detokenizer.finish())
    return deltas, detokenizer.matched_stop


def _token_ids(name):
    """Any tokens, also special and unknown ones, and runs of bytes of text that may be cut."""
    size = TOKENIZERS[name].get_vocab_size()
    text = st.text(st.sampled_from(HARD_TEXT) | st.characters(exclude_categories=["Cs"]))
    bytes_of_text = text.map(lambda t: t.encode())
    cut = st.tuples(bytes_of_text, st.integers(0, 3)).map(lambda c: c[0][: len(c[0]) - c[1]])
    run = (bytes_of_text | cut | st.binary(max_size=6)).map(lambda b: _byte_ids(name, b))
    return st.lists(run | st.lists(st.integers(0, size + 3)), max_size=8).map(
        lambda parts: [token_id for part in parts for token_id in part]
    )


@each_tokenizer
def test_deltas_concatenate_to_the_decoded_text(name):
    @settings(max_examples=200, deadline=None)
    @given(_token_ids(name), st.lists(st.integers(0, 5), max_size=4))
    @example([], [])
    @example(_byte_ids(name, b"\xf0\x9f\x98"), [])
    @example([*_byte_ids(name, "😀".encode() + b"\xff\xf0\x9f"), 258], [])
    @example(_byte_ids(name, b"\xed\xa0\x80\xe2\x82A\xc0\xaf\xf4\x90"), [2])
    def check(token_ids, sizes):
        deltas, _ = _stream(name, token_ids, sizes=sizes)
        expected = TOKENIZERS[name].decode(token_ids, skip_special_tokens=True)
        assert "".join(deltas) == expected

    check()


@each_tokenizer
def test_control_tokens_can_be_shown(name):
    @settings(max_examples=100, deadline=None)
    @given(_token_ids(name))
    def check(token_ids):
        deltas, _ = _stream(name, token_ids, SamplingParams(skip_special_tokens=False))
        expected = TOKENIZERS[name].decode(token_ids, skip_special_tokens=False)
        assert "".join(deltas) == expected

    check()
    end = TOKENIZERS[name].token_to_id("<|end|>")
    assert "<|end|>" in "".join(_stream(name, [end], SamplingParams(skip_special_tokens=False))[0])


@each_tokenizer
def test_text_of_tokens_is_the_tokenizers_and_unknown_ones_are_refused(name):
    size = TOKENIZERS[name].get_vocab_size()
    token_ids = list(range(size))
    expected = TOKENIZERS[name].decode(token_ids, skip_special_tokens=False)
    assert TOKEN_TEXTS[name].decode(token_ids) == expected
    assert "<|end|>" in expected
    for unknown in (size, -1, 2**40):
        with pytest.raises(InvalidRequestError):
            TOKEN_TEXTS[name].decode([0, unknown])


@each_tokenizer_of_bytes
def test_valid_text_never_shows_a_replacement_character(name):
    text = "naïve 日本語 👩\u200d👩\u200d👧 e\u0301"
    deltas, _ = _stream(name, _byte_ids(name, text.encode()))
    assert "".join(deltas) == text
    assert "\ufffd" not in "".join(deltas)


def test_character_comes_with_its_last_byte():
    deltas, _ = _stream("byte_level", _byte_ids("byte_level", "😀a".encode()))
    assert deltas == ["", "", "", "😀", "a", ""]


@each_tokenizer_of_bytes
def test_incomplete_character_at_the_end_becomes_replacement_characters(name):
    deltas, _ = _stream(name, _byte_ids(name, "é".encode()[:1]))
    assert deltas == ["", "\ufffd"]


@each_tokenizer
def test_special_and_unknown_tokens_have_no_text(name):
    tokenizer = TOKENIZERS[name]
    end, tool = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<tool>")
    deltas, _ = _stream(name, [tool, end, tokenizer.get_vocab_size() + 7, tool])
    assert deltas == ["<tool>", "", "", "<tool>", ""]


@pytest.mark.parametrize("pieces", [["▁a", "▁a"], ["a", "▁a"], ["▁▁", "▁a"], ["▁", "▁", "a"]])
@each_tokenizer_of_pieces
def test_only_the_beginning_of_the_text_loses_its_space(name, pieces):
    token_ids = [TOKENIZERS[name].token_to_id(piece) for piece in pieces]
    deltas, _ = _stream(name, token_ids)
    assert "".join(deltas) == TOKENIZERS[name].decode(token_ids)


def _reference_stop(text, stop, include_in_output):
    """The stop string that is complete first, by looking at every end of the text."""
    for end in range(len(text) + 1):
        matched = [s for s in stop if text[:end].endswith(s)]
        if matched:
            longest = max(matched, key=len)
            return text[: end if include_in_output else end - len(longest)], longest
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=12),
    include_in_output=st.booleans(),
)
@example("xabcd", ["abcd", "bc"], [2, 3], False)
@example("aaab", ["aab"], [1, 2, 3], False)
def test_stop_strings_do_not_depend_on_where_text_is_divided(text, stop, cuts, include_in_output):
    checker = StopChecker(stop, include_in_output)
    places = [0, *sorted(cuts), len(text)]
    output = "".join(checker.push(text[a:b]) for a, b in pairwise(places))
    assert (output + checker.finish(), checker.matched) == _reference_stop(
        text, stop, include_in_output
    )


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_only_text_that_may_begin_a_stop_string_is_held_back(text, stop):
    checker = StopChecker(stop)
    output = "".join(checker.push(char) for char in text)
    if checker.matched is None:
        begins = {s[:i] for s in stop for i in range(1, len(s))}
        longest = max(
            (i for i in range(len(text) + 1) if text[len(text) - i :] in begins), default=0
        )
        assert output == text[: len(text) - longest]


@each_tokenizer_of_bytes
@pytest.mark.parametrize("include_in_output", [False, True])
def test_stop_string_across_tokens_ends_the_text(name, include_in_output):
    params = SamplingParams(stop=("日E",), include_stop_str_in_output=include_in_output)
    detokenizer = Detokenizer(TOKEN_TEXTS[name], params)
    tool = TOKENIZERS[name].token_to_id("<tool>")
    assert detokenizer.append([tool]) == TextDelta("<tool>")
    token_ids = [*_byte_ids(name, "日日EF".encode()), tool]
    texts = [detokenizer.append([token_id]).text for token_id in token_ids]
    assert "".join(texts) == ("日日E" if include_in_output else "日")
    assert detokenizer.append([tool]) == TextDelta("", "日E")
    assert detokenizer.finish() == ""
    assert detokenizer.matched_stop == "日E"


def test_text_held_for_a_stop_string_comes_at_the_end():
    ids = _byte_ids("byte_level", b"xEN")
    deltas, matched = _stream("byte_level", ids, SamplingParams(stop=("END",)))
    assert deltas == ["x", "", "", "EN"]
    assert matched is None


def test_stop_string_in_flushed_bytes_is_found_at_the_end():
    ids = _byte_ids("gemma", b"xEND")
    deltas, matched = _stream("gemma", ids, SamplingParams(stop=("END",)))
    assert deltas == ["", "", "", "", "x"]
    assert matched == "END"


def test_stop_string_that_ends_before_min_tokens_is_text():
    params = SamplingParams(stop=("ab",), min_tokens=4)
    deltas, matched = _stream("byte_level", _byte_ids("byte_level", b"abxababx"), params)
    assert "".join(deltas) == "abx"
    assert matched == "ab"


def test_stop_string_may_end_in_the_token_that_reaches_min_tokens():
    params = SamplingParams(stop=("ab",), min_tokens=2)
    deltas, matched = _stream("byte_level", _byte_ids("byte_level", b"abx"), params)
    assert "".join(deltas) == ""
    assert matched == "ab"


def test_many_tokens_at_once_stop_at_the_match():
    params = SamplingParams(stop=("b",))
    detokenizer = Detokenizer(TOKEN_TEXTS["byte_level"], params)
    assert detokenizer.append(_byte_ids("byte_level", b"abc")) == TextDelta("a", "b")


@each_tokenizer_of_bytes
def test_single_byte_tokens_have_their_byte(name):
    every_byte = bytes(range(256))
    token_ids = _byte_ids(name, every_byte)
    assert b"".join(TOKEN_TEXTS[name].to_bytes(token_id) for token_id in token_ids) == every_byte


@each_tokenizer
def test_token_bytes_have_a_real_space_and_special_tokens_their_content(name):
    token_text, tokenizer = TOKEN_TEXTS[name], TOKENIZERS[name]
    spaced = tokenizer.token_to_id("Ġa" if name == "byte_level" else "▁a")
    assert token_text.to_bytes(spaced) == b" a"
    assert token_text.to_text(tokenizer.token_to_id("<|end|>")) == "<|end|>"
    assert token_text.to_bytes(tokenizer.token_to_id("日本 x")) == "日本 x".encode()
    assert token_text.to_bytes(tokenizer.get_vocab_size() + 1) == b""


def test_logprob_entry_has_the_fields_of_openai():
    token_text = TOKEN_TEXTS["byte_level"]
    a, half = _byte_ids("byte_level", b"a\xf0")
    sampled = SampledToken(a, -0.5, ((a, -0.5), (half, float("-inf"))))
    entry = token_text.logprob_entry(sampled)
    assert entry == {
        "token": "a",
        "bytes": [97],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "a", "bytes": [97], "logprob": -0.5},
            {"token": "\ufffd", "bytes": [0xF0], "logprob": -9999.0},
        ],
    }
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)]),
    ],
)
def test_unknown_way_to_join_tokens_is_refused_at_start(decoder):
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(BundleError, match="joins tokens by"):
        TokenText(tokenizer)
