"""`VLM`: the offline engine. The same stages and the same engine as in Triton, called in turn."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from python_backend.arrays import Array
from python_backend.config import EngineConfig
from python_backend.errors import InvalidImageError, InvalidRequestError
from python_backend.loading import load_engine, load_grammars, load_vision_encoder
from python_backend.manifest import ModelFolder
from python_backend.preprocess import PreparedRequest, Preprocessor
from python_backend.request import GenerationRequest, RequestFailure, RequestOutput
from python_backend.sampling_params import SamplingParams
from python_backend.vision_encoder import EncoderImage, no_image_embeds

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers to one prompt.

    Attributes:
        choices: one finished output per choice, text and token ids from the first to the last.
    """

    choices: Sequence[RequestOutput]

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> Sequence[int]:
        """Tokens of the first choice."""
        return self.choices[0].token_ids


class VLM:
    """A built model in this process: no server, no thread, no network.

    Args:
        folder: `<model repository>/<name>`.
        config: how to run it.
        allow_unverified: accept a model that was built with `--skip-verify`.
    """

    def __init__(
        self,
        folder: str | Path,
        config: EngineConfig | None = None,
        *,
        allow_unverified: bool = False,
    ) -> None:
        self.model = ModelFolder.open(Path(folder), allow_unverified=allow_unverified)
        config = config or EngineConfig()
        self._preprocessor = Preprocessor(self.model)
        self._encoder = (
            load_vision_encoder(self.model, self._preprocessor.family, config)
            if self.model.manifest.sees_images
            else None
        )
        # Whatever is asked for in one call waits for its turn.
        self._engine = load_engine(self.model, replace(config, max_waiting=2**31))
        self._grammars = load_grammars(self.model)
        self._num_requests = 0

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: SamplingParams | None = None,
        on_output: Callable[[int, RequestOutput], None] | None = None,
    ) -> list[Generation]:
        """Answer every conversation, many at a time.

        Args:
            conversations: lists of messages; content is a string or parts `{"type": "text",
            "text"}`,
                `{"type": "image", "image": path, bytes or data: URI}`,
                `{"type": "video", "video": the same, or a list of pictures}`, which may have `num_frames` and
                `fps`, and, as in the OpenAI API, `{"type": "image_url", "image_url": {"url": data: URI}}`.
            sampling: for all of them; None takes what the model's generation config says.
            on_output: called with (index of the conversation, what is new of it) as it comes.

        Raises:
            InvalidRequestError: a conversation cannot be served; none is started then. Or a grammar
                became too large on the way.
        """
        params = sampling or self.model.manifest.read_sampling({})
        requests = deque(self._prepare(conversation, params) for conversation in conversations)
        place = {request.request_id: i for i, request in enumerate(requests)}
        answers: list[dict[int, list[RequestOutput]]] = [{} for _ in requests]
        try:
            while requests:  # emptied: the engine frees image embeddings when it has used them
                self._engine.add_request(requests.popleft())
            while self._engine.has_unfinished:
                for output in self._engine.step():
                    if isinstance(output, RequestFailure):
                        raise output.error
                    index = place[output.request_id]
                    answers[index].setdefault(output.index, []).append(output)
                    if on_output is not None:
                        on_output(index, output)
        finally:
            for request_id in place:  # only if an error left some behind
                self._engine.abort(request_id)
        return [
            Generation([first.merge(*later) for _, (first, *later) in sorted(choices.items())])
            for choices in answers
        ]

    def _prepare(
        self, conversation: Sequence[Message], params: SamplingParams
    ) -> GenerationRequest:
        messages, images = split_images(conversation)
        prepared = self._preprocessor.prepare({"messages": messages}, images)
        self._num_requests += 1
        return GenerationRequest(
            f"offline-{self._num_requests}",
            prepared.prompt,
            self._encode(prepared),
            params,
            self._grammars.compile(params.grammar),
        )

    def _encode(self, prepared: PreparedRequest) -> Array:
        if self._encoder is None:
            return no_image_embeds(self.model.manifest.decoder.spec)
        pictures = [
            EncoderImage(image.features, image_hash)
            for image, image_hash in zip(prepared.images, prepared.image_hashes, strict=True)
        ]
        return self._encoder.join(pictures, self._encoder.encode(pictures))

    def close(self) -> None:
        """Free the engines."""
        self._engine.close()
        if self._encoder is not None:
            self._encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def split_images(conversation: Sequence[Message]) -> tuple[list[Message], list[bytes]]:
    """Messages as the preprocess stage takes them, and the encoded files they hold, in order."""
    messages: list[Message] = []
    images: list[bytes] = []
    for message in conversation:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            message = {**message, "content": [_split_part(part, images) for part in content]}
        messages.append(message)  # preprocess refuses what is malformed
    return messages, images


def _split_part(part: Message, images: list[bytes]) -> Message:
    if not isinstance(part, Mapping):
        return part
    if part.get("type") == "image_url":
        image = part.get("image_url")
        if not isinstance(image, Mapping):
            raise InvalidRequestError("image_url must be an object with a url", param="image_url")
        images.append(_read_image(image.get("url")))
        return {"type": "image", "detail": image.get("detail", "auto")}
    if part.get("type") == "image":
        images.append(_read_image(part.get("image")))
        return {"type": "image", "detail": part.get("detail", "auto")}
    if part.get("type") == "video":
        options = {name: part[name] for name in part.keys() - {"video"}}
        video = part.get("video")
        if isinstance(video, list):
            images += map(_read_image, video)
            return {**options, "num_frames": len(video), "is_frames": True}
        images.append(_read_image(video))
        return options
    return part


def _read_image(image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image.startswith("data:"):
        header, _, payload = image.partition(",")
        if not header.endswith(";base64"):
            raise InvalidImageError("a data: URI needs ;base64", code="invalid_base64_image")
        try:
            return base64.b64decode(payload, validate=True)
        except binascii.Error:
            raise InvalidImageError(
                "the data: URI does not hold valid base64", code="invalid_base64_image"
            ) from None
    if isinstance(image, str | Path) and not str(image).startswith(("http:", "https:")):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidImageError(f"{image} cannot be read: {error.strerror}") from None
    raise InvalidRequestError(
        "an image is a path, bytes or a data: URI; the offline engine does not fetch URLs"
    )
