from __future__ import annotations

import dataclasses

import pytest

from openai_frontend.settings import Settings, SettingsError


def test_the_collector_may_come_from_opentelemetrys_own_variable() -> None:
    variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
    theirs, ours = {variable: "http://theirs"}, {"TRITON_VLM_OTLP_ENDPOINT": "http://ours"}
    assert Settings.from_command_line([], {variable: ""}).otlp_endpoint is None
    assert Settings.from_command_line([], theirs).otlp_endpoint == "http://theirs"
    assert Settings.from_command_line([], theirs | ours).otlp_endpoint == "http://ours"
    flags = ["--otlp-endpoint=http://flag"]
    assert Settings.from_command_line(flags, theirs | ours).otlp_endpoint == "http://flag"
    with pytest.raises(SettingsError, match="must be a URL such as http://localhost:4318"):
        Settings(otlp_endpoint="localhost:4317")


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"TRITON_VLM_PORT": "1", "TRITON_VLM_HOST": "::1", "OTHER": "x"}
    settings = Settings.from_command_line(["--port", "2", "--triton", "t:8001"], environ)
    assert settings == Settings(port=2, host="::1", triton="t:8001")


def test_every_kind_of_value_can_be_given_both_ways() -> None:
    expected = Settings(
        allow_private_media=True,
        allowed_media_domains=("a.example", "b.example"),
        allowed_media_path="/srv",
        max_n=3,
    )
    flags = ["--allow-private-media", "--allowed-media-domains", "a.example, b.example"]
    flags += ["--allowed-media-path", "/srv"]
    assert Settings.from_command_line([*flags, "--max-n", "3"], {}) == expected
    environ = {
        "TRITON_VLM_ALLOW_PRIVATE_MEDIA": "true",
        "TRITON_VLM_ALLOWED_MEDIA_DOMAINS": "a.example,b.example",
        "TRITON_VLM_ALLOWED_MEDIA_PATH": "/srv",
        "TRITON_VLM_MAX_N": "3",
    }
    assert Settings.from_command_line([], environ) == expected
    assert Settings.from_command_line(["--no-allow-private-media"], environ) == (
        dataclasses.replace(expected, allow_private_media=False)
    )


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--port", "x"], {}, "--port is 'x'; it must be a number"),
        ([], {"TRITON_VLM_PORT": "x"}, "TRITON_VLM_PORT is 'x'; it must be a number"),
        ([], {"TRITON_VLM_ALLOW_PRIVATE_MEDIA": "maybe"}, "it must be true or false"),
        (["--max-n", "0"], {}, "max_n is 0; it must be greater than zero"),
        (["--media-timeout-s", "nan"], {}, "media_timeout_s is nan"),
        (["--log-level", "loud"], {}, "log_level is 'loud'"),
        (["--unknown"], {}, "unrecognized arguments: --unknown"),
        (["--tls-cert", "c.pem"], {}, "tls_cert and tls_key belong together"),
        (["--cors-origins", "https://a.example/"], {}, "an origin looks like https://"),
        (["--cors-origins", "a.example"], {}, "an origin looks like https://"),
        (["--cors-origins", "https://*.example"], {}, "an origin looks like https://"),
    ],
)
def test_wrong_value_is_one_sentence(argv, environ, message) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_command_line(argv, environ)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_cannot_be_given_on_the_command_line() -> None:
    """Every user of the machine can read it."""
    with pytest.raises(SettingsError, match="unrecognized"):
        Settings.from_command_line(["--api-keys", "sk-0123456789abcdef"], {})
    environ = {"TRITON_VLM_API_KEYS": "sk-0123456789abcdef name=a, sk-fedcba9876543210"}
    settings = Settings.from_command_line([], environ)
    assert settings.api_keys == ("sk-0123456789abcdef name=a", "sk-fedcba9876543210")
    assert "0123456789" not in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.com", "fe80::1"])
def test_open_server_for_others_must_be_asked_for(host) -> None:
    with pytest.raises(SettingsError, match=r"no API key is needed.*--allow-anonymous"):
        Settings(host=host)
    Settings(host=host, allow_anonymous=True)
    Settings(host=host, api_key_file="keys")
    Settings(host=host, api_keys=("sk-0123456789abcdef",))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_open_server_for_this_machine_is_the_default(host) -> None:
    assert not Settings(host=host).needs_key


def test_private_addresses_are_off_by_default() -> None:
    assert not Settings().allow_private_media
    assert Settings().host == "127.0.0.1"
