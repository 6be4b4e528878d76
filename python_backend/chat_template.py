"""The checkpoint's own chat template and tokenizer: a conversation to token ids, nothing interpreted.

What a user types is text and stays text: a control token inside it is tokenized like any other
characters, and an image placeholder inside it is refused, because placeholders stand for images
only (CVE-2026-44222: one in a text without an image killed a peer's worker).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from transformers import PreTrainedTokenizerFast

from python_backend.errors import BundleError, InvalidRequestError
from python_backend.reasoning import KNOWN_MARKS
from python_backend.tool_calls import find_format

Message = Mapping[str, Any]

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
"""Characters that stand in, while the template is rendered, for what a user typed."""
_NUM_SHOWN_CHARS = 2
"""Characters of a control token by which its beginning is recognized in a text."""


_USUAL_TOKENS = PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
"""Names of control tokens that every tokenizer may have; checkpoints may have others, as `image_token`."""

TEMPLATE_VARIABLES: Mapping[str, type] = {
    "enable_thinking": bool,
    "thinking": bool,
    "add_vision_id": bool,
    "date_string": str,
}
"""What a request may set of the variables that chat templates read."""


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How messages are rendered.

    Attributes:
        add_generation_prompt: whether the assistant's turn is opened behind them.
        continue_final_message: whether the last message is left open instead, to be gone on with.
        variables: values for some of `TEMPLATE_VARIABLES`.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


_DEFAULT_OPTIONS = TemplateOptions()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the prompt is made of: exactly one of the first three fields.

    Attributes:
        messages: chat messages of a role and content, checked by `preprocess`; content is a string
            or parts `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type": "video"}`. Beside them
            may be what the template reads of tool calls and reasoning.
        tools: functions that the model may call, with `messages` only.
        prompt: raw text, in which control tokens have their meaning.
        prompt_token_ids: ready ids.
        options: for `messages`.
    """

    messages: Sequence[Message] | None = None
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    options: TemplateOptions = field(default_factory=TemplateOptions)


@dataclass(frozen=True, slots=True)
class VideoTemplate:
    """What takes the place of the checkpoint's template where a conversation has a video.

    It writes roles and parts, and nothing else.

    Attributes:
        template: Jinja.
        placeholder: what it writes where a video is; text, no token.
    """

    template: str
    placeholder: str


class ChatTemplate:
    """Renders and tokenizes.

    Args:
        processor_dir: folder with the tokenizer's files.
        placeholder_id: the token that the template writes where an image is; None for a model that reads
            text only.
        image_token_id: the token that stands for one image embedding; often the same.
        video_token_id: the token that does both for a video; None for a model that has none.
        video_template: the family's own for conversations with videos, if it has one.

    Raises:
        BundleError: the tokenizer has no such token.

    Attributes:
        image_token: the second, as text; empty for a model that reads text only.
        video_token: the third, as text; empty for a model that has none.
    """

    def __init__(
        self,
        processor_dir: Path,
        placeholder_id: int | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        video_template: VideoTemplate | None = None,
    ) -> None:
        self._tokenizer: Any = _load_tokenizer(processor_dir)
        self._plain = self._tokenizer.backend_tokenizer
        added = self._plain.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        self._added: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        image_ids = (placeholder_id, image_token_id, video_token_id)
        self._image_ids = {i for i in image_ids if i is not None}
        tokens = ["" if i is None else self.text_of(i) for i in image_ids]
        placeholder, self.image_token, self.video_token = tokens
        self._image_tokens = [token for token in tokens if token]
        self._placeholders = {placeholder: "image", self.video_token: "video"}
        self._placeholders.pop("", None)
        self._video_template = video_template
        if video_template is not None:
            self._placeholders[video_template.placeholder] = "video"
        self._placeholder = re.compile("|".join(map(re.escape, self._placeholders)))
        # Longest first, so that no token hides another that it begins.
        names = sorted(self._special_ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, names)))
        # The beginning is enough, and at the end of a text less than that: its neighbour in the
        # rendered conversation may complete it.
        begins = sorted({name[:_NUM_SHOWN_CHARS] for name in (*names, *self._placeholders)})
        self._firsts = ends = sorted({begin[0] for begin in begins})
        self._begins = re.compile(
            "|".join([*map(re.escape, begins), *(re.escape(end) + r"(?=\s*$)" for end in ends)])
        )

    def text_of(self, token_id: int) -> str:
        """The text of a control token.

        Raises:
            BundleError: the tokenizer has no such token.
        """
        if token_id not in self._added:
            raise BundleError(
                f"the tokenizer has no token {token_id}, which config.json says has to do with images: "
                "download the checkpoint again"
            )
        return self._added[token_id]

    @property
    def tool_format(self) -> str | None:
        """How the model writes tool calls, a name of `tool_calls.FORMATS`; None if it takes no tools."""
        visible = set(self._added.values()) - self._special_ids.keys()
        form = find_format(self._render, visible)
        return None if form is None else form.name

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """The texts of the tokens around the model's reasoning; None if the template knows of none."""
        template = str(self._tokenizer.chat_template)  # or several, by name
        for marks in KNOWN_MARKS:
            if all(mark in template and mark in self._added.values() for mark in marks):
                return marks
        return None

    def token_ids(self, conversation: Conversation, image_texts: Sequence[str] = ()) -> np.ndarray:
        """Token ids int64 [S].

        Args:
            conversation: what to say.
            image_texts: what takes the place of each image's placeholder, in order.

        Raises:
            InvalidRequestError: a text holds an image token, an id is out of range, or the template
                has not one placeholder for each image.
        """
        if conversation.prompt_token_ids is not None:
            given = conversation.prompt_token_ids
            if not given or min(given) < 0 or max(given) >= len(self._tokenizer):
                raise InvalidRequestError(
                    f"token ids must be between 0 and {len(self._tokenizer) - 1}", param="prompt"
                )
            if not self._image_ids.isdisjoint(given):
                raise self._image_token_error(self.image_token, "prompt")
            return np.asarray(given, np.int64)
        if conversation.prompt is not None:
            self._check(conversation.prompt, "prompt")
            ids = self._tokenizer(conversation.prompt)["input_ids"]
            if not ids:
                raise InvalidRequestError("the prompt is empty; give it some text", param="prompt")
            return np.asarray(ids, np.int64)
        assert conversation.messages is not None
        self._check_variables(conversation.options.variables)
        return self._chat_token_ids(conversation, image_texts)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Every name that stands in the template's code."""
        tokens = Environment().lex(self._tokenizer.get_chat_template())
        return frozenset(value for _, kind, value in tokens if kind == "name")

    @cached_property
    def _drops_strings(self) -> bool:
        """Whether the template reads parts only: those of Idefics3 and LLaVA make nothing of a string."""
        text = "What is this?"
        try:
            return text not in self._render([{"role": "user", "content": text}], ())
        except Exception:  # templates raise whatever their author chose
            return False

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        for name, value in variables.items():
            param = f"chat_template_kwargs.{name}"
            if name not in self._names:
                raise InvalidRequestError(
                    f"the model's chat template does not read {name}: leave it out", param=param
                )
            if isinstance(value, str) and self._specials.search(value):
                raise InvalidRequestError(f"{name} contains a control token", param=param)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        options: TemplateOptions = _DEFAULT_OPTIONS,
        template: str | None = None,
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            **options.variables,
        )
        return text

    def _chat_token_ids(self, conversation: Conversation, image_texts: Sequence[str]) -> np.ndarray:
        messages, tools = conversation.messages, conversation.tools
        assert messages is not None
        stand_ins = self._free_stand_ins([messages, tools])

        def disarm(text: str, param: str) -> str:
            return self._disarm(text, param, stand_ins)

        disarmed = [_map_message(m, f"messages[{i}]", disarm) for i, m in enumerate(messages)]
        disarmed_tools = _map_strings(tools, "tools", disarm)
        # Llama's template takes the results of tools, and beside tools the first message, for strings.
        disarmed = [_with_plain_text(m) if tools or m["role"] == "tool" else m for m in disarmed]
        kinds = _media_kinds(messages)
        template = None
        if self._video_template is not None and "video" in kinds:
            _check_for_video_template(conversation)
            template = self._video_template.template
        if template is not None or self._drops_strings:
            disarmed = [_with_parts(m) for m in disarmed]
        try:
            text = self._render(disarmed, disarmed_tools, conversation.options, template)
        except Exception as error:  # templates raise whatever their author chose
            if "continue_final_message" in str(error):
                raise InvalidRequestError(
                    "the model's chat template does not show the end of the last message, so that it "
                    "cannot be continued: end it with text",
                    param="continue_final_message",
                ) from error
            raise InvalidRequestError(
                f"the model's chat template refuses this conversation: {error}", param="messages"
            ) from error
        text = self._insert_images(text, kinds, image_texts, conversation)
        typed = str.maketrans({stand_in: char for char, stand_in in stand_ins.items()})
        ids: list[int] = []
        end = 0
        for match in self._specials.finditer(text):
            ids += self._encode(text[end : match.start()], typed)
            ids.append(self._special_ids[match[0]])
            end = match.end()
        ids += self._encode(text[end:], typed)
        return np.asarray(ids, np.int64)

    def _insert_images(
        self,
        text: str,
        kinds: Sequence[str],
        image_texts: Sequence[str],
        conversation: Conversation,
    ) -> str:
        found = self._placeholder.findall(text) if self._placeholders else []
        if len(found) != len(image_texts):
            raise InvalidRequestError(
                f"the prompt has {len(found)} image placeholders for {len(image_texts)} images; "
                + _where_images_may_be(conversation),
                param="messages",
            )
        if [self._placeholders[token] for token in found] != kinds:
            raise InvalidRequestError(
                "the model's chat template puts images before videos: send them in this order",
                param="messages",
            )
        texts = iter(image_texts)
        return self._placeholder.sub(lambda _: next(texts), text) if found else text

    def _encode(self, text: str, typed: dict[int, str]) -> list[int]:
        """Ids of text between control tokens; one that was typed is plain characters."""
        if not text:
            return []
        armed = text.translate(typed)
        if armed == text:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        self._plain.encode_special_tokens = True
        try:
            return list(self._plain.encode(armed, add_special_tokens=False).ids)
        finally:
            self._plain.encode_special_tokens = False

    def _free_stand_ins(self, given: Sequence[Any]) -> dict[str, str]:
        """For every character that begins a control token or placeholder, one that is not in JSON `given`."""
        taken = set(json.dumps(given, ensure_ascii=False))
        free = (char for char in map(chr, _PRIVATE_USE) if char not in taken)
        try:
            return {first: next(free) for first in self._firsts}
        except StopIteration:
            raise InvalidRequestError(
                "the messages contain every private-use character of Unicode; leave one out",
                param="messages",
            ) from None

    def _disarm(self, text: str, param: str, stand_ins: Mapping[str, str]) -> str:
        """`text` in which no control token or placeholder begins, also not together with what follows it."""
        self._check(text, param)
        return self._begins.sub(lambda match: stand_ins[match[0][0]] + match[0][1:], text)

    def _check(self, text: str, param: str) -> None:
        for token in self._image_tokens:
            if token in text:
                raise self._image_token_error(token, param)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
            raise InvalidRequestError(
                f"the text has no character at position {error.start} but half a surrogate pair: "
                "send valid Unicode",
                param=param,
            ) from error

    @staticmethod
    def _image_token_error(token: str, param: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"the text contains {token}, which stands for images only: remove it and "
            "send the picture as an image_url or video_url part",
            param=param,
        )


def _load_tokenizer(processor_dir: Path) -> Any:
    """What the builder wrote: tokenizer.json, the control tokens that templates name, and the templates.

    `AutoTokenizer` would read tokenizer.json three times and make a tokenizer of its own that equals it:
    0.3 of the seconds that a start takes with a vocabulary of 150,000.
    """
    config = json.loads((processor_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    texts = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    usual = {name: texts.pop(name) for name in set(texts) & set(_USUAL_TOKENS)}
    make: Any = PreTrainedTokenizerFast  # which has no annotations
    return make(
        tokenizer_file=str(processor_dir / "tokenizer.json"),
        chat_template=_read_templates(processor_dir) or config.get("chat_template"),
        model_specific_special_tokens=texts,
        **usual,
    )


def _read_templates(processor_dir: Path) -> str | dict[str, str] | None:
    """The chat template, or several by name; None without a file."""
    main = processor_dir / "chat_template.jinja"
    if not main.exists():
        return None
    others = sorted((processor_dir / "additional_chat_templates").glob("*.jinja"))
    named = {path.stem: path.read_text(encoding="utf-8") for path in others}
    default = main.read_text(encoding="utf-8")
    return {"default": default, **named} if named else default


def _map_message(message: Message, param: str, change: Callable[[str, str], str]) -> dict[str, Any]:
    """`message` with every string changed that is not the API's own; of images nothing but the type."""
    mapped = {
        name: _map_strings(value, f"{param}.{name}", change)
        for name, value in message.items()
        if name not in ("role", "content")
    }
    content = message["content"]
    if isinstance(content, str):
        content = change(content, f"{param}.content")
    else:
        content = [
            {"type": "text", "text": change(part["text"], f"{param}.content[{i}].text")}
            if part["type"] == "text"
            else {"type": part["type"]}
            for i, part in enumerate(content)
        ]
    return {"role": message["role"], "content": content, **mapped}


def _map_strings(value: Any, param: str, change: Callable[[str, str], str]) -> Any:
    """JSON with every string changed, names of members too."""
    if isinstance(value, str):
        return change(value, param)
    if isinstance(value, Mapping):
        return {
            change(name, param): _map_strings(item, f"{param}.{name}", change)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_strings(item, f"{param}[{i}]", change) for i, item in enumerate(value)]
    return value


def _media_kinds(messages: Sequence[Message]) -> list[str]:
    """`image` or `video` for each that the messages have, in order."""
    return [
        part["type"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] != "text"
    ]


def _check_for_video_template(conversation: Conversation) -> None:
    """Refuse what a family's template for videos would leave out."""
    if (
        conversation.tools
        or conversation.options.variables
        or any(message.keys() - {"role", "content"} for message in conversation.messages or ())
    ):
        raise InvalidRequestError(
            "beside a video the model's chat template takes neither tools nor reasoning nor "
            "chat_template_kwargs: leave them out",
            param="messages",
        )


def _where_images_may_be(conversation: Conversation) -> str:
    """What to do about images that a chat template leaves out."""
    if conversation.tools:
        return "the model's chat template leaves images out beside tools: send one or the other"
    if any(message["role"] == "tool" for message in conversation.messages or ()):
        return "put images into user messages, and only text into results of tools"
    return "put images into user messages"


def _with_plain_text(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with a string in place of parts that are all text."""
    content = message["content"]
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with parts in place of a string."""
    content = message["content"]
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
