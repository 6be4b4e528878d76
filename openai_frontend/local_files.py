"""Images on this machine's disk, for clients that may name them: only in one folder, off by default."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from openai_frontend.addresses import refused
from openai_frontend.fetch import too_large
from openai_frontend.settings import Settings, SettingsError
from python_backend.errors import InvalidRequestError

_PREFIX = "file:///"


def is_file_url(url: str) -> bool:
    """Whether `url` names a file."""
    return url[:5].lower() == "file:"


class LocalFiles:
    """Reads files below the folder that the settings allow.

    Raises:
        SettingsError: there is no such folder.
    """

    def __init__(self, settings: Settings) -> None:
        root = settings.allowed_media_path
        self._root = None if root is None else Path(os.path.realpath(root))
        if self._root is not None and not self._root.is_dir():
            raise SettingsError(
                f"allowed_media_path is {root}, which is not a folder; make it first"
            )
        self._max_bytes = settings.max_image_bytes

    def check(self, url: str) -> None:
        """Refuse `url` unless it names something below the folder, whether that exists or not.

        Raises:
            InvalidRequestError: it is not allowed.
        """
        self._resolve(url)

    async def read(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
        """The bytes of the file that `url` names.

        Args:
            url: as the client wrote it.
            on_bytes: is told their number, and may raise.

        Raises:
            InvalidRequestError: the file is refused, missing or too large.
        """
        data = await asyncio.to_thread(self._read, self._resolve(url))
        on_bytes(len(data))
        return data

    def _resolve(self, url: str) -> Path:
        """The path without symbolic links: what is compared is what is opened (CVE-2026-47612)."""
        if self._root is None:
            raise refused("this server does not allow file: URLs (--allowed-media-path)")
        if not url.lower().startswith(_PREFIX) or "?" in url or "#" in url:
            raise refused("a file: URL must look like 'file:///folder/picture.png'")
        try:
            path = unquote(url[len(_PREFIX) - 1 :], errors="strict")
            resolved = Path(os.path.realpath(path))
        except ValueError:  # not UTF-8, or a NUL
            raise refused("its path is not one") from None
        if not resolved.is_relative_to(self._root):
            raise refused("its path is not in the folder that this server allows")
        return resolved

    def _read(self, path: Path) -> bytes:
        try:
            # Not following and not blocking: a link or a pipe may have taken the file's place.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise _not_found()
                data = file.read(self._max_bytes + 1)
        except OSError:
            raise _not_found() from None
        if len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        return data


def _not_found() -> InvalidRequestError:
    return InvalidRequestError(
        "The image file does not exist or cannot be read; check the path of its file: URL.",
        code="image_file_not_found",
    )
