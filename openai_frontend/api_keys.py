"""The API keys that are accepted: read from settings and a file, kept as hashes, with their quotas.

One key a line: the key or `sha256:` and its hash in hex, then what is known about it:

    sha256:9f86d081884c7d65...  name=alice  requests-per-minute=60  tokens-per-minute=100000
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from openai_frontend.quota import Quota
from openai_frontend.settings import ENVIRONMENT_PREFIX, Settings, SettingsError

_log = logging.getLogger(__name__)

_HASH_PREFIX = "sha256:"
_HASH = re.compile(r"[0-9a-f]{64}")
# Hashing is no protection for a key that can be guessed.
_KEY = re.compile(r"[!-~]{16,512}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LIMIT = re.compile(r"[1-9][0-9]{0,11}")
_RELOAD_INTERVAL_S = 1.0

_Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that is accepted.

    Attributes:
        digest: SHA-256 of the key, which is not kept.
        name: of its owner, for the log.
        requests_per_minute: limit of generation requests, None for no limit.
        tokens_per_minute: limit of their tokens, None for no limit.
        quota: what is left of the limits.
    """

    digest: bytes = field(repr=False)
    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    quota: Quota = field(compare=False, repr=False)


class ApiKeys:
    """The keys of the settings and of a file, which is read again when it has changed.

    Args:
        settings: say where the keys are.
        clock: seconds since any fixed time; replaced in tests.

    Raises:
        SettingsError: the file cannot be read, a line is wrong, or there is no key.
    """

    def __init__(self, settings: Settings, clock: _Clock = time.monotonic) -> None:
        self._clock = clock
        self._entries = settings.api_keys
        self._path = Path(settings.api_key_file) if settings.api_key_file is not None else None
        self._version = self._file_version()
        self._keys = self._read()
        self._checked_at = clock()

    def find(self, secret: bytes) -> ApiKey | None:
        """The key that a client sent, or None; takes as long for every wrong one."""
        self._reload_if_changed()
        digest = hashlib.sha256(secret).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if self._path is None or now - self._checked_at < _RELOAD_INTERVAL_S:
            return
        self._checked_at = now
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            keys = self._read()
        except SettingsError as error:
            _log.error("the API keys stay as they were: %s", error)
            return
        # A key whose limits did not change goes on with what it has left.
        old = {key: key for key in self._keys}
        self._keys = [old.get(key, key) for key in keys]
        _log.info("read %d API keys from %s", len(keys), self._path)

    def _file_version(self) -> tuple[int, ...] | None:
        """Changes when the file is written or replaced; None while it cannot be found."""
        try:
            stat = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if stat is None else (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _read(self) -> list[ApiKey]:
        variable = ENVIRONMENT_PREFIX + "API_KEYS"
        sources = [(f"entry {i} of {variable}", text) for i, text in enumerate(self._entries, 1)]
        if self._path is not None:
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise SettingsError(
                    f"the API keys in {self._path} cannot be read: {reason}"
                ) from None
            sources += [(f"line {i} of {self._path}", line) for i, line in enumerate(lines, 1)]
        return _parse_keys(sources, self._clock)


def new_key() -> str:
    """A key that nobody can guess."""
    return "sk-" + secrets.token_urlsafe(32)


def key_line(
    key: str, name: str, requests_per_minute: int | None, tokens_per_minute: int | None
) -> str:
    """The line of the key file that makes `key` valid, without giving it away.

    Raises:
        SettingsError: the name cannot be used.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()
    limits = {"requests-per-minute": requests_per_minute, "tokens-per-minute": tokens_per_minute}
    options = {"name": name} | {option: limit for option, limit in limits.items() if limit}
    line = " ".join([_HASH_PREFIX + digest, *(f"{k}={v}" for k, v in options.items())])
    _parse_keys([("the line", line)], time.monotonic)
    return line


def _parse_keys(sources: Iterable[tuple[str, str]], clock: _Clock) -> list[ApiKey]:
    keys: dict[bytes, ApiKey] = {}
    for where, line in sources:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = _parse_key(where, words, clock)
        if key.digest in keys:
            raise SettingsError(f"{where} repeats an API key; leave one of the two out")
        keys[key.digest] = key
    if not keys:
        raise SettingsError("there is no API key where they should be; make one: triton-vlm key")
    return list(keys.values())


def _parse_key(where: str, words: list[str], clock: _Clock) -> ApiKey:
    """The key of one line; errors never show it."""
    secret, *pairs = words
    if secret.startswith(_HASH_PREFIX):
        hexadecimal = secret.removeprefix(_HASH_PREFIX)
        if not _HASH.fullmatch(hexadecimal):
            raise SettingsError(f"{where} has no SHA-256 of 64 hexadecimal digits after sha256:")
        digest = bytes.fromhex(hexadecimal)
    elif _KEY.fullmatch(secret):
        digest = hashlib.sha256(secret.encode()).digest()
    else:
        raise SettingsError(
            f"{where} has an API key that is not 16 to 512 ASCII characters; make one: triton-vlm key"
        )
    patterns = {"name": _NAME, "requests-per-minute": _LIMIT, "tokens-per-minute": _LIMIT}
    options: dict[str, str] = {}
    for pair in pairs:
        option, _, value = pair.partition("=")
        if option not in patterns or option in options or not patterns[option].fullmatch(value):
            raise SettingsError(
                f"{where} has something wrong after the key; name=, requests-per-minute= and "
                "tokens-per-minute= may follow, each once"
            )
        options[option] = value
    limits = {
        option.replace("-", "_"): int(value)
        for option, value in options.items()
        if option != "name"
    }
    return ApiKey(
        digest=digest,
        name=options.get("name", f"key-{digest.hex()[:8]}"),
        quota=Quota(**limits, clock=clock),
        **limits,
    )
