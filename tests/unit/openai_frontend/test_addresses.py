"""What may be fetched, as tables."""

from __future__ import annotations

import pytest

from openai_frontend.addresses import UrlPolicy, is_public_address
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",  # cloud metadata: CVE-2026-33626
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata over IPv6
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::1",  # 6to4 of 127.0.0.1
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
        "not an address",
        "",
    ],
)
def test_address_that_is_not_public_is_recognized(address) -> None:
    """CVE-2026-33626 (GHSA-6w67-hwm5-92mq): exploited within hours for the metadata address."""
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "100.63.255.255",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_address_is_recognized(address) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com",
        "javascript:alert(1)",
        "/etc/passwd",
        "//example.com/a.png",
        "example.com/a.png",
        "http://",
        "http:///a.png",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://example.com\\@127.0.0.1/",  # CVE-2026-24779
        "https://example.com/\\..\\",
        "https://example.com/a b",
        "https://example.com/\r\nHost: x",
        "https://example.com/\x00",
        "https://example.com/\x85",
        " https://example.com/",
        "https://exa%00mple.com/",
        "http://127.0.0.1%2f.example.com/",
        "http://example.com%2f@127.0.0.1/",
        "http://①②⑦.⓪.⓪.①/",
        "https://example.com:22/",
        "http://example.com:8080/",
        "http://example.com:99999/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://[::1/",
        "https://" + "a" * 9000,
    ],
)
def test_url_that_is_malformed_or_ambiguous_is_refused(url) -> None:
    """CVE-2026-24779 (GHSA-qh4c-xf7m-gxfc), CVE-2026-25960 (GHSA-v359-jj2v-j536): parsers that disagree about
    the host."""
    with pytest.raises(InvalidRequestError) as caught:
        UrlPolicy(Settings()).check_url(url)
    assert caught.value.code == "invalid_image_url"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png?x=1&y=2",
        "http://example.com:80/",
        "https://example.com:443/ü.png",
        "HTTPS://EXAMPLE.COM/",
        "https://bücher.example/",
        "https://93.184.216.34/",
        "https://[2606:4700:4700::1111]/",
    ],
)
def test_ordinary_url_is_accepted(url) -> None:
    UrlPolicy(Settings()).check_url(url)


def test_fragment_is_not_sent() -> None:
    assert str(UrlPolicy(Settings()).check_url("https://a.example/b#c")) == "https://a.example/b"


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://img.example.com/a", True),
        ("https://IMG.Example.COM/a", True),
        ("https://img.example.com./a", True),
        ("https://xn--bcher-kva.example/a", True),
        ("https://bücher.example/a", True),
        ("https://example.com/a", False),
        ("https://sub.img.example.com/a", False),
        ("https://img.example.com.evil.test/a", False),
        ("https://evilimg.example.com/a", False),
    ],
)
def test_allowed_domains_match_exactly(url, is_allowed) -> None:
    policy = UrlPolicy(Settings(allowed_media_domains=("img.example.com", "xn--bcher-kva.example")))
    if is_allowed:
        policy.check_url(url)
    else:
        with pytest.raises(InvalidRequestError):
            policy.check_url(url)


def test_one_private_record_is_enough_to_refuse() -> None:
    policy = UrlPolicy(Settings())
    assert list(policy.check_addresses(["8.8.8.8", "1.1.1.1"])) == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(InvalidRequestError):
        policy.check_addresses(["8.8.8.8", "10.0.0.1"])


def test_private_hosts_can_be_allowed_for_closed_networks() -> None:
    policy = UrlPolicy(Settings(allow_private_media=True))
    policy.check_url("http://127.0.0.1:8080/a.png")
    policy.check_addresses(["127.0.0.1"])
    with pytest.raises(InvalidRequestError):
        policy.check_url("file:///etc/passwd")
