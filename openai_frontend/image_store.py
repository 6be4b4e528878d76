"""Images that clients have given a `uuid`, to name them later instead of sending them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from openai_frontend.api_keys import ApiKey
from openai_frontend.conversation import ImageSource
from openai_frontend.errors import ImageNotFoundError
from openai_frontend.namespaces import Namespace, Namespaces
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError


class _StoredImage:
    """The bytes of an image file, counted in its namespace as long as they are kept."""

    __slots__ = ("_namespace", "data")

    def __init__(self, namespace: Namespace[_StoredImage], data: bytes) -> None:
        self._namespace = namespace
        self.data = data
        namespace.num_bytes += len(data)

    def __del__(self) -> None:
        self._namespace.num_bytes -= len(self.data)


class ImageStore:
    """Keeps image files until they are unused for too long, or in the way of newer ones.

    A uuid stands for the bytes that the same API key has sent with it, and for nothing else: caches of the
    stages go by the hash of these bytes, which no client can say (CVE-2026-105754). Without API keys nobody
    can tell the images of one client from those of another, so nothing is kept.

    Args:
        settings: the bounds.
        on_lookup: is told whether an image was there.
        clock: seconds since any fixed time; replaced in tests.
    """

    def __init__(
        self,
        settings: Settings,
        on_lookup: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespaces: Namespaces[_StoredImage] = Namespaces(
            max_entries=settings.max_stored_images,
            max_bytes=settings.max_stored_image_bytes,
            ttl_s=settings.stored_image_ttl_s,
            clock=clock,
        )
        self._on_lookup = on_lookup

    @property
    def num_bytes(self) -> int:
        """Memory that is in use."""
        return self._namespaces.num_bytes

    def locate(self, owner: ApiKey | None, sources: Sequence[ImageSource]) -> list[str | bytes]:
        """For each image the URL to load it from, or its file where the client has only named it.

        A uuid stands for the image that came with it last: earlier in the request, or in an earlier one.

        Raises:
            ImageNotFoundError: the client has sent no image with this uuid, or it is no longer kept.
            InvalidRequestError: this server does not take a uuid of this client.
        """
        places: list[str | bytes] = []
        urls: dict[str, str] = {}
        for source in sources:
            if source.uuid is None:
                assert source.url is not None
                places.append(source.url)
                continue
            self._check_owner(owner, source)
            if source.url is not None:
                urls[source.uuid] = source.url
            places.append(urls.get(source.uuid) or self._find(owner, source.uuid, source))
        return places

    def keep(
        self, owner: ApiKey | None, sources: Sequence[ImageSource], files: Sequence[bytes]
    ) -> None:
        """Remember the files that came with a uuid, in place of what it stood for before.

        Args:
            owner: who sent them.
            sources: of all images of a request that `locate` has let pass.
            files: of the same images.
        """
        for source, data in zip(sources, files, strict=True):
            if source.url is None or source.uuid is None:
                continue
            namespace = self._namespaces.open(owner)
            namespace.entries.pop(source.uuid, None)
            if len(data) <= self._namespaces.max_bytes:
                self._namespaces.add(namespace, source.uuid, _StoredImage(namespace, data))

    def _check_owner(self, owner: ApiKey | None, source: ImageSource) -> None:
        if owner is not None and self._namespaces.max_entries > 0:
            return
        reason = "stores no images" if owner is not None else "has no API keys"
        raise InvalidRequestError(
            f"'uuid' names an image for the API key that sends it, and this server {reason}; send every "
            "image without it.",
            code="unsupported_parameter",
            param=source.uuid_param,
        )

    def _find(self, owner: ApiKey | None, uuid: str, source: ImageSource) -> bytes:
        image = self._namespaces.find(owner, uuid)
        self._on_lookup(image is not None)
        if image is None:
            raise ImageNotFoundError(source.uuid_param)
        return image.data
