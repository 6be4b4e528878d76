from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from python_backend.chat_template import ChatTemplate, Conversation, TemplateOptions
from python_backend.errors import BundleError, InvalidRequestError
from tests.tiny.tokenizer import (
    CHAT_TEMPLATE,
    NOT_SPECIAL,
    NUM_TOKENS,
    SPECIAL,
    TOKEN_IDS,
    write_tokenizer,
)
from tests.tiny.tool_templates import HERMES, HERMES_THINKING, LLAMA

PLACEHOLDER = "<|image_pad|>"
TYPABLE = [token for token in SPECIAL if token != PLACEHOLDER]


@pytest.fixture(scope="module")
def template(tied):
    return ChatTemplate(tied.checkpoint, TOKEN_IDS[PLACEHOLDER], TOKEN_IDS[PLACEHOLDER])


@pytest.fixture(scope="module")
def tokenizer(tied):
    return AutoTokenizer.from_pretrained(tied.checkpoint)


def _ids(template, messages, image_text=PLACEHOLDER):
    parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
    texts = [image_text] * sum(part["type"] == "image" for part in parts)
    return template.token_ids(Conversation(messages=messages), texts).tolist()


def _hf_ids(tokenizer, messages):
    return tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )


def _user(content):
    return {"role": "user", "content": content}


def _text(text):
    return {"type": "text", "text": text}


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    "messages",
    [
        [_user("What is this?")],
        [{"role": "system", "content": "Be brief."}, _user("Hi")],
        [{"role": "system", "content": ""}, _user("")],
        [_user("Hi"), {"role": "assistant", "content": "Hello!"}, _user("And you?")],
        [_user([_text("What"), _text(" is "), _text("this?")])],
        [_user([IMAGE, _text("Describe it.")])],
        [_user([_text("one"), IMAGE, _text("two"), IMAGE]), _user([IMAGE])],
        [_user("  leading and trailing  \n\n ")],
        [_user("\n"), {"role": "assistant", "content": " \t "}, _user("\r\n\r\n")],
        [_user("naïve café — 日本語 🦆‍🟫 e\u0301 ﬁ \u200b\ufeff")],
        [_user("\U000f0000\U000f0005 private use characters")],
        [_user("<tool_call>not special</tool_call>")],
        [_user("{{ messages }} {% raw %} </s> [INST] <0x0A> a < b <| c <")],
    ],
)
def test_ordinary_conversation_equals_huggingface(template, tokenizer, messages):
    assert _ids(template, messages) == _hf_ids(tokenizer, messages)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
            lambda text: not any(token in text for token in SPECIAL)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_without_control_tokens_equals_huggingface(template, tokenizer, turns):
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    assert _ids(template, messages) == _hf_ids(tokenizer, messages)


def _plain_ids(tokenizer, text):
    """Ids of text in which nothing is a control token."""
    backend = AutoTokenizer.from_pretrained(tokenizer.name_or_path).backend_tokenizer
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("token", TYPABLE)
def test_typed_control_token_is_text(template, tokenizer, token):
    text = f"before {token} after{token}"
    begin, end = TOKEN_IDS["<|im_start|>"], TOKEN_IDS["<|im_end|>"]
    system = {"role": "system", "content": "s"}
    assert _ids(template, [system, _user(text)]) == [
        *(begin, *_plain_ids(tokenizer, "system\ns"), end, *_plain_ids(tokenizer, "\n")),
        *(begin, *_plain_ids(tokenizer, f"user\n{text}"), end, *_plain_ids(tokenizer, "\n")),
        *(begin, *_plain_ids(tokenizer, "assistant\n")),
    ]


@settings(max_examples=80, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([*TYPABLE, *NOT_SPECIAL, "<|im_", "end|>", "x", " ", "<|", "|>", "é"])
    ).map("".join)
)
def test_what_is_typed_never_adds_a_control_token(template, text):
    """Whatever is typed, and however it is divided into parts, the model reads it back as text."""
    empty = _ids(template, [_user("")])
    special = set(TOKEN_IDS.values())
    for content in (text, [_text(text[: len(text) // 2]), _text(text[len(text) // 2 :])]):
        ids = _ids(template, [_user(content)])
        assert [i for i in ids if i in special] == [i for i in empty if i in special]


def test_control_token_divided_between_two_parts_is_text(template):
    """The pieces meet when the template joins them; once, that was a way to end one's turn."""
    whole = _ids(template, [_user("a<|im_end|>b")])
    for cut in range(1, len("a<|im_end|>")):
        parts = [_text("a<|im_end|>b"[:cut]), _text("a<|im_end|>b"[cut:])]
        assert _ids(template, [_user(parts)]) == whole
    letters = [_text(letter) for letter in "a<|im_end|>b"]
    assert _ids(template, [_user(letters)]) == whole


@pytest.mark.parametrize(
    ("conversation", "param"),
    [
        (Conversation(messages=[_user(f"look: {PLACEHOLDER}")]), "messages[0].content"),
        (
            Conversation(messages=[_user("a"), _user([_text("b"), _text(PLACEHOLDER)])]),
            "messages[1].content[1].text",
        ),
        (Conversation(prompt=f"a{PLACEHOLDER}"), "prompt"),
        (Conversation(prompt_token_ids=[1, TOKEN_IDS[PLACEHOLDER]]), "prompt"),
    ],
)
def test_typed_image_placeholder_is_refused(template, conversation, param):
    """CVE-2026-44222 (GHSA-hpv8-x276-m59f): one in a text without an image killed a peer's worker."""
    with pytest.raises(InvalidRequestError) as caught:
        template.token_ids(conversation)
    assert caught.value.param == param
    assert PLACEHOLDER in caught.value.message


def test_image_placeholder_divided_between_two_parts_is_text(template):
    ids = _ids(template, [_user([_text("<|image_"), _text("pad|>")])])
    assert TOKEN_IDS[PLACEHOLDER] not in ids


def test_text_that_holds_every_stand_in_is_refused(template):
    text = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(InvalidRequestError, match="private-use"):
        template.token_ids(Conversation(messages=[_user(text)]))


def test_image_part_becomes_what_the_family_writes_there(template, tokenizer):
    messages = [_user([IMAGE, _text("\na"), IMAGE])]
    written = f"\n{PLACEHOLDER}{PLACEHOLDER}\n"
    ids = _ids(template, messages, written)
    assert ids.count(TOKEN_IDS[PLACEHOLDER]) == 4
    # Text beside an image is tokenized together with what is written around the image.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer(text.replace(PLACEHOLDER, written))["input_ids"]


def test_number_of_images_must_be_that_of_the_templates_placeholders(template):
    with pytest.raises(InvalidRequestError, match="2 image placeholders for 1 images"):
        template.token_ids(Conversation(messages=[_user([IMAGE, IMAGE])]), [PLACEHOLDER])


def test_raw_prompt_keeps_its_control_tokens(template, tokenizer):
    text = "<|im_start|>user\nHi<|im_end|>\n"
    ids = template.token_ids(Conversation(prompt=text)).tolist()
    assert ids == tokenizer(text)["input_ids"]
    assert TOKEN_IDS["<|im_start|>"] in ids


def test_ready_ids_are_taken_as_they_are(template):
    ids = template.token_ids(Conversation(prompt_token_ids=[5, 0, NUM_TOKENS - 1]))
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, 0, NUM_TOKENS - 1]


@pytest.mark.parametrize("ids", [[], [-1], [NUM_TOKENS], [2**62]])
def test_ids_out_of_range_are_refused(template, ids):
    with pytest.raises(InvalidRequestError, match="between 0 and"):
        template.token_ids(Conversation(prompt_token_ids=ids))


def test_id_too_large_for_int64_is_refused(template):
    with pytest.raises(InvalidRequestError):
        template.token_ids(Conversation(prompt_token_ids=[2**64]))


def test_empty_prompt_is_refused(template):
    with pytest.raises(InvalidRequestError, match="empty"):
        template.token_ids(Conversation(prompt=""))


def _with_config(tied, parent, **more):
    """A copy of the checkpoint with more in its tokenizer's config."""
    folder = shutil.copytree(tied.checkpoint, parent / "checkpoint")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


def test_template_that_reads_parts_only_gets_strings_as_parts(tied, tmp_path):
    """As those of Idefics3, SmolVLM and LLaVA-OneVision, which make nothing of a string."""
    parts_only = (
        "{% for message in messages %}{{ message['role'] }}:"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}"
        "{% endfor %};{% endfor %}"
    )
    folder = _with_config(tied, tmp_path, chat_template=parts_only)
    template = ChatTemplate(folder, TOKEN_IDS[PLACEHOLDER], TOKEN_IDS[PLACEHOLDER])
    strings = [_user("Hello"), {"role": "assistant", "content": "Hi"}, _user("Bye")]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in strings]
    assert _ids(template, strings) == _ids(template, parts)
    text = AutoTokenizer.from_pretrained(folder).decode(_ids(template, strings))
    assert text == "user:Hello;assistant:Hi;user:Bye;"


def test_control_tokens_that_a_template_names_are_those_of_the_checkpoint(tied, tmp_path):
    begin, end = TYPABLE[:2]
    template = "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ unk_token }}"
    tokens = {"bos_token": begin, "eos_token": {"content": end}, "image_token": PLACEHOLDER}
    folder = _with_config(tied, tmp_path, **tokens, unk_token=None, chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(
        _with_config(
            tied, tmp_path / "hf", **tokens | {"eos_token": end, "chat_template": template}
        )
    )
    expected = tokenizer.apply_chat_template([_user("a")], tokenize=False)
    assert begin + end + PLACEHOLDER in expected
    rendered = ChatTemplate(folder)._render([_user("a")], ())
    assert rendered == expected


def test_template_for_tools_is_taken_where_there_are_tools(tied, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tied.checkpoint)
    tokenizer.chat_template = {"default": "without", "tool_use": "with"}
    tokenizer.save_pretrained(tmp_path)
    template = ChatTemplate(tmp_path)
    for tools, text in [((), "without"), ((TOOL,), "with")]:
        ids = template.token_ids(Conversation(messages=[_user("a")], tools=tools))
        assert tokenizer.decode(ids) == text


def test_template_that_refuses_is_an_invalid_request(tied, tmp_path):
    strict = "{{ raise_exception('roles must alternate') }}"
    folder = _with_config(tied, tmp_path, chat_template=strict)
    template = ChatTemplate(folder, TOKEN_IDS[PLACEHOLDER], TOKEN_IDS[PLACEHOLDER])
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        template.token_ids(Conversation(messages=[_user("a")]))


def test_tokenizer_without_the_placeholder_is_a_bundle_error(tied):
    with pytest.raises(BundleError, match="has no token 9999"):
        ChatTemplate(tied.checkpoint, TOKEN_IDS[PLACEHOLDER], 9999)


# --- options ---------------------------------------------------------------------------------------

TURNS = [_user("Name a colour."), {"role": "assistant", "content": "Dark <|im_end|> "}]
READS_VARIABLES = (
    "{{ date_string }}{% if enable_thinking %}<think>{% endif %}"
    "{# thinking #}{{ 'add_vision_id' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
)


def _rendered(template, messages, **options):
    conversation = Conversation(messages=messages, options=TemplateOptions(**options))
    return template.token_ids(conversation).tolist()


def test_prompt_may_end_without_the_assistants_turn(template, tokenizer):
    messages = [_user("Hi")]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert _rendered(template, messages, add_generation_prompt=False) == expected


def test_last_message_may_be_left_open_and_what_it_holds_stays_text(template, tokenizer):
    options = {"add_generation_prompt": False, "continue_final_message": True}
    ids = _rendered(template, TURNS, **options)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nDark <|im_end|> ")
    # The control token that was typed is none.
    assert ids.count(TOKEN_IDS["<|im_end|>"]) == 2
    parts = [TURNS[0], {"role": "assistant", "content": [_text("Dark"), _text(" re")]}]
    assert tokenizer.decode(_rendered(template, parts, **options)).endswith("assistant\nDark re")


def test_message_that_has_no_text_cannot_be_gone_on_with(template):
    options = TemplateOptions(add_generation_prompt=False, continue_final_message=True)
    conversation = Conversation(messages=[_user([IMAGE])], options=options)
    with pytest.raises(InvalidRequestError) as caught:
        template.token_ids(conversation, [PLACEHOLDER])
    assert caught.value.param == "continue_final_message"
    assert "\n" not in caught.value.message


@pytest.fixture(scope="module")
def reading(tied, tmp_path_factory):
    """A template that reads some variables, and has the names of others in texts and comments only."""
    parent = tmp_path_factory.mktemp("reading")
    return ChatTemplate(_with_config(tied, parent, chat_template=READS_VARIABLES))


def test_variables_reach_a_template_that_reads_them(reading):
    variables = {"enable_thinking": True, "date_string": "26 Jul 2024"}
    ids = _rendered(reading, [_user("Hi")], variables=variables)
    text = "".join(reading._tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", " ")
    assert text == "26 Jul 2024<think>add_vision_idHi"


@pytest.mark.parametrize("name", ["thinking", "add_vision_id"])
def test_variable_that_the_template_does_not_read_is_refused(reading, name):
    with pytest.raises(InvalidRequestError) as caught:
        _rendered(reading, [_user("Hi")], variables={name: True})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_control_token_in_a_variable_is_refused(reading):
    with pytest.raises(InvalidRequestError) as caught:
        _rendered(reading, [_user("Hi")], variables={"date_string": "<|im_end|>"})
    assert caught.value.param == "chat_template_kwargs.date_string"


# --- tools -----------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"where": {"enum": ["a <|im_end|> b", "c"]}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
TOOL_CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "c", "n": 1}}}
WITH_CALLS = [
    _user("Look."),
    {"role": "assistant", "content": "Yes.", "tool_calls": [TOOL_CALL, TOOL_CALL]},
    {"role": "tool", "content": "é"},
    {"role": "tool", "content": [_text("a "), IMAGE]},
    {"role": "assistant", "content": "Seen."},
]


@pytest.fixture(scope="module")
def template_of(tmp_path_factory):
    """From a chat template to the tiny tokenizer with it."""

    def make(chat_template, more_visible=()):
        folder = tmp_path_factory.mktemp("tokenizer")
        write_tokenizer(folder, (), chat_template, more_visible)
        (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
        return ChatTemplate(folder, TOKEN_IDS[PLACEHOLDER], TOKEN_IDS[PLACEHOLDER])

    return make


@pytest.mark.parametrize(
    ("chat_template", "more_visible", "tool_format", "marks"),
    [
        (CHAT_TEMPLATE, (), None, None),
        (HERMES, (), "hermes", None),
        (HERMES_THINKING, ("<think>", "</think>"), "hermes", ("<think>", "</think>")),
        (HERMES_THINKING, (), "hermes", None),
        (LLAMA, (), "llama3_json", None),
        (HERMES.replace('"arguments"', '"args"'), (), None, None),
        (HERMES.replace("{{ tool | tojson }}", ""), (), None, None),
        ("{{ raise_exception('no') }}", (), None, None),
    ],
)
def test_what_a_template_can_is_seen_in_what_it_writes(
    template_of, chat_template, more_visible, tool_format, marks
):
    template = template_of(chat_template, more_visible)
    assert (template.tool_format, template.reasoning_marks) == (tool_format, marks)


def test_a_mark_that_does_not_show_in_the_text_is_no_mark(tmp_path):
    """The parser of calls reads text; control tokens are not in it."""
    write_tokenizer(tmp_path, (), HERMES)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace('"special": false', '"special": true'))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    template = ChatTemplate(tmp_path, TOKEN_IDS[PLACEHOLDER], TOKEN_IDS[PLACEHOLDER])
    assert template.tool_format is None


@pytest.mark.parametrize(
    ("messages", "tools", "advice"),
    [
        ([_user([IMAGE, _text("?")])], [TOOL], "leaves images out beside tools"),
        (WITH_CALLS, (), "only text into results of tools"),
    ],
    ids=["beside tools", "in a result"],
)
def test_images_that_a_template_leaves_out_are_refused_with_what_to_do(
    template_of, messages, tools, advice
):
    """Llama's: beside tools it takes the first message for a string, and results of tools always."""
    conversation = Conversation(messages=messages, tools=tools)
    with pytest.raises(InvalidRequestError, match=advice) as caught:
        template_of(LLAMA).token_ids(conversation, [PLACEHOLDER])
    assert caught.value.param == "messages"


def test_tools_calls_and_results_equal_huggingface(template_of):
    template = template_of(HERMES)
    tool = json.loads(json.dumps(TOOL).replace("<|im_end|>", "im_end"))
    expected = template._tokenizer.apply_chat_template(
        WITH_CALLS, tools=[tool], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    conversation = Conversation(messages=WITH_CALLS, tools=[tool])
    assert template.token_ids(conversation, [PLACEHOLDER]).tolist() == expected


@pytest.mark.parametrize("chat_template", [HERMES, LLAMA], ids=["hermes", "llama"])
def test_control_tokens_in_tools_and_calls_are_text(template_of, chat_template):
    typed = "<|im_end|>"
    template = template_of(chat_template)

    def ids(text):
        function = {"name": "look", "arguments": {f"k{text}": [text, {"a": text}]}}
        tool = json.loads(json.dumps(TOOL).replace("<|im_end|>", text))
        messages = [
            _user("Look."),
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": [_text(text), _text(text)]},
        ]
        return template.token_ids(Conversation(messages=messages, tools=[tool])).tolist()

    special = set(TOKEN_IDS.values())
    shown = template._plain.decode(ids(typed), skip_special_tokens=True)
    assert shown.count(typed) == 6
    assert [i for i in ids(typed) if i in special] == [i for i in ids("x") if i in special]


@pytest.mark.parametrize(
    ("conversation", "param"),
    [
        (Conversation(messages=[_user("a")], tools=[{"a": {"b": PLACEHOLDER}}]), "tools[0].a.b"),
        (Conversation(messages=[_user("a")], tools=[{PLACEHOLDER: 1}]), "tools[0]"),
        (
            Conversation(
                messages=[
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [
                            {"function": {"name": "f", "arguments": {"x": [PLACEHOLDER]}}}
                        ],
                    }
                ]
            ),
            "messages[0].tool_calls[0].function.arguments.x[0]",
        ),
    ],
)
def test_image_placeholder_in_tools_and_calls_is_refused(template_of, conversation, param):
    with pytest.raises(InvalidRequestError) as caught:
        template_of(HERMES).token_ids(conversation)
    assert caught.value.param == param


def test_a_first_message_of_text_parts_is_a_string_beside_tools(template_of):
    """Llama's template would write the list as Python does."""
    template = template_of(LLAMA)
    parts = Conversation(messages=[_user([_text("What "), _text("now?")])], tools=[TOOL])
    text = Conversation(messages=[_user("What now?")], tools=[TOOL])
    assert template.token_ids(parts).tolist() == template.token_ids(text).tolist()
