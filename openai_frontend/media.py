"""From the image and video URLs of a request to checked files.

Everything that can be checked without opening a connection is checked first, for all images, so
that a refused request costs nothing (CVE-2026-100650). The sum of the bytes of a request has a
limit of its own, because many images under the limit of one are as dangerous as one over it
(CVE-2026-130686). Pixels are decoded in the preprocess stage, not here.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from openai_frontend.addresses import refused
from openai_frontend.api_keys import ApiKey
from openai_frontend.conversation import ImageSource
from openai_frontend.fetch import too_large
from openai_frontend.image_store import ImageStore
from openai_frontend.local_files import LocalFiles, is_file_url
from openai_frontend.settings import Settings
from python_backend.errors import InvalidImageError, InvalidRequestError

_DATA_URL = re.compile(r"data:(image|video)/[a-z0-9.+-]+(?:;[^,;]*)*;base64,", re.IGNORECASE)
_MAX_DATA_HEADER_CHARS = 256
_Key = tuple[str, bool]
"""A URL, and whether it is that of a video: the two are checked otherwise."""
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")


class Fetcher(Protocol):
    """The part of `MediaFetcher` that is needed here."""

    def check(self, url: str) -> None:
        """Refuse a URL before anything is fetched."""
        ...

    async def fetch(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
        """The bytes behind a URL; `on_bytes` is told their number as they arrive."""
        ...


class MediaLoader:
    """Loads the images and videos of one request within its limits."""

    def __init__(self, settings: Settings, fetcher: Fetcher, store: ImageStore) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._store = store
        self._local_files = LocalFiles(settings)

    async def load(
        self, sources: Sequence[ImageSource], model_max_images: int | None, owner: ApiKey | None
    ) -> list[bytes]:
        """The files of a request, in order; the same URL twice is fetched once.

        Args:
            sources: where the images and videos are.
            model_max_images: limit of the model, if it has one.
            owner: whose images a uuid may stand for.

        Raises:
            InvalidRequestError: names the image at fault.
        """
        max_images = self._settings.max_images
        if model_max_images is not None:
            max_images = min(max_images, model_max_images)
        num_images = sum(source.kind == "image" for source in sources)
        if num_images > max_images:
            raise InvalidRequestError(
                f"At most {max_images} image(s) may be provided in one request, "
                f"but got {num_images}.",
                param="messages",
            )
        places = self._store.locate(owner, sources)
        linked: dict[_Key, ImageSource] = {}
        for source in sources:
            if source.url is not None:
                linked.setdefault((source.url, source.kind == "video"), source)
        for (url, _), source in linked.items():
            with _blamed_on(source):
                self._check_url(url)
        budget = _ByteBudget(self._settings.max_total_image_bytes)
        budget.take(sum(len(place) for place in places if isinstance(place, bytes)))
        files: dict[_Key, bytes] = {}
        for key, source in linked.items():
            if _is_data_url(key[0]):
                with _blamed_on(source):
                    files[key] = _decode_data_url(*key)
                    budget.take(len(files[key]))
                    _check_kind(files[key], source)
        others = {key: source for key, source in linked.items() if key not in files}
        files |= await self._fetch_all(others, budget)
        images = [
            place if isinstance(place, bytes) else files[place, source.kind == "video"]
            for place, source in zip(places, sources, strict=True)
        ]
        # Again over all of them: what was loaded once is sent as often as it is used.
        _ByteBudget(self._settings.max_total_image_bytes).take(sum(map(len, images)))
        self._store.keep(owner, sources, images)
        return images

    def _check_url(self, url: str) -> None:
        if is_file_url(url):
            self._local_files.check(url)
            return
        if not _is_data_url(url):
            self._fetcher.check(url)
            return
        # Base64 makes 4 characters of 3 bytes; the header of the URL is too short to matter.
        if len(url) * 3 // 4 > self._settings.max_image_bytes + _MAX_DATA_HEADER_CHARS:
            raise too_large(self._settings.max_image_bytes)

    async def _fetch_all(
        self, linked: Mapping[_Key, ImageSource], budget: _ByteBudget
    ) -> dict[_Key, bytes]:
        async def fetch(url: str, source: ImageSource) -> bytes:
            with _blamed_on(source):
                read = self._local_files.read if is_file_url(url) else self._fetcher.fetch
                data = await read(url, budget.take)
                _check_kind(data, source)
                return data

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {key: group.create_task(fetch(key[0], linked[key])) for key in linked}
        except BaseExceptionGroup as errors:
            # The first failure cancels the other downloads; the client hears about that one.
            raise errors.exceptions[0] from None
        return {key: task.result() for key, task in tasks.items()}


class _ByteBudget:
    """Counts the bytes of all images and videos of a request."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count `num_bytes` more.

        Raises:
            InvalidRequestError: the images are too large together.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"The images of the request are larger than {self._max_bytes} bytes together; "
                "send fewer or smaller files.",
                code="image_file_too_large",
            )


def check_format(data: bytes) -> None:
    """Refuse files that do not start like a PNG, JPEG, GIF or WEBP file.

    What a URL or a server calls the file is not looked at: only its bytes reach the decoder.

    Raises:
        InvalidImageError: the file is empty or something else.
    """
    if not data:
        raise InvalidImageError("The image file is empty.", code="empty_image_file")
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not (is_webp or data.startswith(_MAGIC)):
        raise InvalidImageError(
            "You uploaded an unsupported image. Please make sure your image is of one of the "
            "following formats: ['png', 'jpeg', 'gif', 'webp'].",
            code="invalid_image_format",
        )


def check_video_format(data: bytes) -> None:
    """Refuse files that do not start like an MP4 or a WebM file.

    Raises:
        InvalidImageError: the file is empty or something else.
    """
    if not data:
        raise InvalidImageError("The video file is empty.", code="empty_video_file")
    if data[4:8] != b"ftyp" and not data.startswith(b"\x1aE\xdf\xa3"):
        raise InvalidImageError(
            "The video is not an MP4 or WebM file; convert it, or send frames as "
            "data:video/jpeg;base64,<frame>,<frame>.",
            code="invalid_video_format",
        )


def _check_kind(data: bytes, source: ImageSource) -> None:
    check = check_video_format if source.kind == "video" else check_format
    check(data)


def _is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def _decode_data_url(url: str, is_video: bool) -> bytes:
    match = _DATA_URL.match(url[:_MAX_DATA_HEADER_CHARS])
    if match is None or (match[1].lower() == "video") != is_video:
        example = "video/mp4" if is_video else "image/png"
        raise refused(f"a data: URL must look like 'data:{example};base64,...'")
    try:
        return binascii.a2b_base64(url[match.end() :].encode("ascii"), strict_mode=True)
    except ValueError:
        # Also UnicodeEncodeError, for characters that base64 does not have.
        raise InvalidImageError(
            "The image is not valid base64; encode the bytes of the file in standard base64.",
            code="invalid_base64_image",
        ) from None


@contextmanager
def _blamed_on(source: ImageSource) -> Iterator[None]:
    """Add the path of the image to errors from inside, and call it a video if it is one."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = error.param or source.param
        if source.kind == "video":
            error.message = re.sub("image(?!/)", "video", error.message)
            error.code = (error.code or "").replace("image", "video")
        raise
