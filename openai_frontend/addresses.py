"""Which URLs and IP addresses this server may connect to on behalf of a client."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence

import httpx

from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> IP addresses."""

_MAX_URL_CHARS = 8192
_PUBLIC_PORTS = (80, 443)
# Whitespace, control characters and backslashes: what two URL parsers may read differently
# (CVE-2026-24779, CVE-2026-25960).
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
# A last label of digits or hex digits: to inet_aton 2130706433, 0177.0.0.1, 0x7f.1 are 127.0.0.1.
_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?")
# Prefixes under which an IPv6 address carries an IPv4 address that a gateway connects to.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class UrlPolicy:
    """Decides which URLs may be fetched; the same for a first URL and for every redirect."""

    def __init__(self, settings: Settings) -> None:
        self._allow_private = settings.allow_private_media
        self._domains = frozenset(
            domain.lower().rstrip(".") for domain in settings.allowed_media_domains
        )

    def check_url(self, url: str) -> httpx.URL:
        """Parse `url` once; only the returned object may be used from here on.

        Raises:
            InvalidRequestError: the URL is malformed or not allowed.
        """
        if len(url) > _MAX_URL_CHARS:
            raise refused(f"it is longer than {_MAX_URL_CHARS} characters")
        if _AMBIGUOUS.search(url):
            raise refused("it contains a space, a control character or a backslash")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise refused("it is not a valid URL") from None
        if parsed.scheme not in ("http", "https"):
            raise refused("its scheme is not http, https or data")
        if parsed.userinfo:
            raise refused("it contains a user name or a password")
        # The ASCII form: what goes into DNS, certificates and headers.
        host = parsed.raw_host.decode("ascii")
        if not host:
            raise refused("it has no host")
        if "%" in host:
            raise refused("its host has a percent sign")
        if _NUMERIC_HOST.fullmatch(host) and _parse_ip(host) is None:
            raise refused("its host is not an IP address in the usual form")
        if self._domains and host.lower().rstrip(".") not in self._domains:
            raise refused("its host is not one this server is allowed to fetch images from")
        if not self._allow_private and parsed.port not in (None, *_PUBLIC_PORTS):
            raise refused("its port is not 80 or 443")
        return parsed.copy_with(fragment=None)

    def check_addresses(self, addresses: Sequence[str]) -> Sequence[str]:
        """`addresses`, if a connection to every one of them is allowed.

        One private record among public ones is enough to refuse: which of them a connection uses is
        up to whoever controls the name.

        Raises:
            InvalidRequestError: one of them is not a public address.
        """
        if not self._allow_private and not all(map(is_public_address, addresses)):
            raise refused("its host is not on the public internet")
        return addresses


def is_public_address(address: str) -> bool:
    """Whether anyone can reach `address`, so that reaching it through this server gains nothing."""
    ip = _parse_ip(address)
    if ip is None:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in _NAT64):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is not None:
            return is_public_address(str(embedded))
        if ip.is_site_local or ip.teredo is not None:
            return False
    # is_global alone lets multicast pass.
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def refused(reason: str) -> InvalidRequestError:
    """The error of a URL that is not fetched because of `reason`."""
    return InvalidRequestError(f"The image URL cannot be used: {reason}.", code="invalid_image_url")


def _parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
