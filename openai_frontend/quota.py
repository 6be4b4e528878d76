"""What one API key may still use: requests and tokens per minute, each a token bucket.

A bucket is full at first and fills at the rate of the limit, so a minute's worth may come at once. Tokens
are reserved by an estimate when a request is admitted and settled by what it used; an answer that was
longer than estimated leaves the bucket in debt, which the next request waits for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from openai_frontend.errors import RequestRateError, TokenRateError
from python_backend.errors import InvalidRequestError

_MINUTE_S = 60.0


class TokenBucket:
    """Fills up to `per_minute` in a minute.

    Args:
        per_minute: the limit, also the most that it holds.
        clock: seconds since any fixed time.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._updated_at = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it is there."""
        missing = amount - self._filled()
        if missing > 0:
            return missing * _MINUTE_S / self.per_minute
        self._level -= amount
        return 0.0

    def correct(self, amount: float) -> None:
        """Take `amount` whatever is there; a negative one is given back."""
        self._level = min(self._filled() - amount, self.per_minute)

    @property
    def remaining(self) -> int:
        """What could be taken now."""
        return max(0, math.floor(self._filled()))

    @property
    def reset_s(self) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self._filled()) * _MINUTE_S / self.per_minute

    def _filled(self) -> float:
        now = self._clock()
        gained = (now - self._updated_at) * self.per_minute / _MINUTE_S
        self._level = min(self._level + gained, self.per_minute)
        self._updated_at = now
        return self._level


class Quota:
    """The limits of one key and what is left of them; used from one event loop.

    Args:
        requests_per_minute: limit of generation requests, None for no limit.
        tokens_per_minute: limit of prompt and generated tokens together, None for no limit.
        clock: seconds since any fixed time; replaced in tests.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def bucket(per_minute: int | None) -> TokenBucket | None:
            return None if per_minute is None else TokenBucket(per_minute, clock)

        self._requests, self._tokens = bucket(requests_per_minute), bucket(tokens_per_minute)

    def admit(self) -> None:
        """Count one request.

        Raises:
            RequestRateError: there were too many in the last minute.
        """
        if self._requests is None:
            return
        wait_s = self._requests.take(1)
        if wait_s:
            raise RequestRateError(
                f"Rate limit reached on requests per min: limit {self._requests.per_minute}. "
                f"Please try again in {duration(wait_s)}.",
                retry_after_s=wait_s,
            )

    def reserve_tokens(self, num_tokens: int) -> None:
        """Take what a request is estimated to use.

        Raises:
            TokenRateError: it is not there now.
            InvalidRequestError: it never will be.
        """
        if self._tokens is None:
            return
        limit = self._tokens.per_minute
        if num_tokens > limit:
            raise InvalidRequestError(
                f"Request too large for the tokens per min of this API key: limit {limit}, requested "
                f"about {num_tokens}. Send less text or fewer images, or lower max_tokens or n.",
                code="rate_limit_exceeded",
            )
        remaining = self._tokens.remaining
        wait_s = self._tokens.take(num_tokens)
        if wait_s:
            raise TokenRateError(
                f"Rate limit reached on tokens per min: limit {limit}, remaining {remaining}, "
                f"requested about {num_tokens}. Please try again in {duration(wait_s)}.",
                retry_after_s=wait_s,
            )

    def settle_tokens(self, num_reserved: int, num_used: int) -> None:
        """Replace what was reserved for a request by what it used."""
        if self._tokens is not None:
            self._tokens.correct(num_used - num_reserved)

    def headers(self) -> dict[str, str]:
        """OpenAI's headers about the limits that there are."""
        headers = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining)
                headers[f"x-ratelimit-reset-{name}"] = duration(bucket.reset_s)
        return headers


def duration(seconds: float) -> str:
    """OpenAI's way to write a time, rounded up: `250ms`, `7.66s`, `1m30s`."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{ms / 1000:g}s"
