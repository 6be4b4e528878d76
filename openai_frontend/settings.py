"""Settings of the proxy: every value, its default and its help text, in one place.

Each field is also a flag (`max_n` is `--max-n`) and an environment variable (`TRITON_VLM_MAX_N`);
the flag wins over the variable, the variable over the default. Secrets have a variable only: every
user of a machine can read the command lines of its processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_type_hints

ENVIRONMENT_PREFIX = "TRITON_VLM_"
OTLP_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Every OpenTelemetry program's variable of `otlp_endpoint`; ours wins."""
_MIB = 1024 * 1024
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_HTTP_URL = re.compile(r"https?://[^/\s]\S*")
_MAY_BE_ZERO = (
    *("port", "max_media_redirects", "max_stored_responses", "max_stored_images", "models_ttl_s"),
)
# What browsers send as Origin: no path, not even a slash at the end.
_ORIGIN = re.compile(r"\*|https?://[^/\s*]+")


class SettingsError(ValueError):
    """The proxy cannot run like this; the message is one sentence."""


def _setting(default: Any, help_text: str, *, is_secret: bool = False) -> Any:
    metadata = {"help": help_text, "is_secret": is_secret}
    return field(default=default, metadata=metadata, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the proxy runs; the help texts describe the fields."""

    triton: str = _setting("localhost:8001", "host:port of Triton's gRPC endpoint")
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(9000, "port to listen on")

    api_keys: tuple[str, ...] = _setting(
        (), "comma-separated API keys, each as a line of the file", is_secret=True
    )
    api_key_file: str | None = _setting(
        None,
        "file with an API key a line, made by `triton-vlm key`; read again when it has changed",
    )
    allow_anonymous: bool = _setting(
        False, "listen on addresses that others can reach although no API key is needed"
    )
    public_metrics: bool = _setting(False, "answer /metrics without an API key")
    cors_origins: tuple[str, ...] = _setting(
        (), "comma-separated origins whose web pages may use the API, or *; empty: none"
    )
    tls_cert: str | None = _setting(None, "certificate chain in PEM: serve HTTPS, TLS 1.2 or later")
    tls_key: str | None = _setting(None, "the certificate's private key in PEM")

    max_concurrent_requests: int = _setting(256, "generation requests served at the same time")
    max_body_bytes: int = _setting(64 * _MIB, "largest request body")
    body_timeout_s: float = _setting(60.0, "time a client has to send its request body")
    max_n: int = _setting(8, "largest `n`: choices generated for one request")

    max_images: int = _setting(16, "most images in one request; a model may allow fewer")
    max_videos: int = _setting(1, "most videos in one request")
    max_video_frames: int = _setting(32, "most frames of one video that are looked at")
    max_image_bytes: int = _setting(20 * _MIB, "largest image or video file")
    max_total_image_bytes: int = _setting(
        48 * _MIB, "largest sum of the image and video files of one request"
    )
    media_timeout_s: float = _setting(
        10.0, "time to fetch one image or video: name lookup, redirects and body"
    )
    max_media_redirects: int = _setting(3, "redirects followed for one image; each one is checked")
    max_media_connections: int = _setting(32, "images fetched at the same time by this process")
    allowed_media_domains: tuple[str, ...] = _setting(
        (), "comma-separated host names images may come from, matched exactly; empty: any"
    )
    allow_private_media: bool = _setting(
        False,
        "fetch images from private addresses and any port too; for tests and closed networks, "
        "never where untrusted people can send requests",
    )
    allowed_media_path: str | None = _setting(
        None, "folder whose images clients may name by file: URL; without it none"
    )

    max_stored_responses: int = _setting(
        1000, "responses of /v1/responses kept in memory for all API keys together; 0: none"
    )
    max_stored_bytes: int = _setting(256 * _MIB, "memory for stored responses and their inputs")
    stored_response_ttl_s: float = _setting(
        3600.0, "time a stored response is kept after it was last used"
    )

    max_stored_images: int = _setting(
        1000, "images with a uuid kept in memory for all API keys together; 0: none"
    )
    max_stored_image_bytes: int = _setting(256 * _MIB, "memory for images with a uuid")
    stored_image_ttl_s: float = _setting(
        3600.0, "time an image with a uuid is kept after it was last used"
    )

    models_ttl_s: float = _setting(5.0, "how long the list of Triton's models is remembered")
    probe_timeout_s: float = _setting(10.0, "time in which /health/generate must have its tokens")
    retry_after_s: int = _setting(1, "Retry-After of 429 and 503 answers, in seconds")
    shutdown_timeout_s: int = _setting(10, "time running requests have to finish at shutdown")
    log_level: str = _setting("info", "debug, info, warning or error")
    otlp_endpoint: str | None = _setting(
        None,
        "send OpenTelemetry traces to this collector, such as http://localhost:4318; also "
        f"{OTLP_VARIABLE}",
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            minimum = 0 if setting.name in _MAY_BE_ZERO else 1e-9
            if is_number and not value >= minimum:  # also true for "nan"
                raise SettingsError(f"{setting.name} is {value}; it must be greater than zero")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(
                f"log_level is {self.log_level!r}; it must be debug, info, warning or error"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert and tls_key belong together; give both or none")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"cors_origins has {origin!r}; an origin looks like https://app.example.com"
                )
        if self.otlp_endpoint is not None and not _HTTP_URL.fullmatch(self.otlp_endpoint):
            raise SettingsError(
                "otlp_endpoint must be a URL such as http://localhost:4318; /v1/traces is added to it"
            )
        if not (self.needs_key or self.allow_anonymous or _is_loopback(self.host)):
            raise SettingsError(
                f"host is {self.host!r}, where others can reach this server, and no API key is "
                "needed: give --api-key-file (`triton-vlm key` makes one), or --allow-anonymous if "
                "everyone may use it"
            )

    @property
    def needs_key(self) -> bool:
        """Whether clients need an API key."""
        return bool(self.api_keys) or self.api_key_file is not None

    @classmethod
    def from_command_line(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
        """Read flags and environment; `--help` ends the process.

        Raises:
            SettingsError: a value is wrong, or values do not go together.
        """
        parser = _Parser(
            prog="python -m openai_frontend",
            description="OpenAI-compatible HTTP server in front of Triton.",
        )
        types = get_type_hints(cls)
        for setting in dataclasses.fields(cls):
            if not setting.metadata["is_secret"]:
                _add_flag(parser, setting, types[setting.name])
        values: dict[str, Any] = {
            setting.name: _parse(types[setting.name], environ[variable], variable)
            for setting in dataclasses.fields(cls)
            if (variable := ENVIRONMENT_PREFIX + setting.name.upper()) in environ
        }
        if environ.get(OTLP_VARIABLE):
            values.setdefault("otlp_endpoint", environ[OTLP_VARIABLE])
        return cls(**values | vars(parser.parse_args(argv)))


class _Parser(argparse.ArgumentParser):
    """Its own message for a wrong command line is a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists the settings")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _add_flag(
    parser: argparse.ArgumentParser, setting: dataclasses.Field[Any], type_: object
) -> None:
    flag = "--" + setting.name.replace("_", "-")
    shown = "none" if setting.default in ((), None) else setting.default
    help_text = f"{setting.metadata['help']} (default: {shown})"
    # SUPPRESS leaves out what was not given, so that it cannot hide the environment.
    if type_ is bool:
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text
        )
        return
    parser.add_argument(
        flag,
        type=lambda text: _argument(type_, text, flag),
        default=argparse.SUPPRESS,
        metavar=setting.name.upper(),
        help=help_text,
    )


def _argument(type_: object, text: str, flag: str) -> Any:
    try:
        return _parse(type_, text, flag)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parse(type_: object, text: str, source: str) -> Any:
    """The value of type `type_` written as `text`, which `source` named."""
    if type_ in (str, str | None):
        return text
    if type_ is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise SettingsError(f"{source} is {text!r}; it must be true or false")
    if type_ is int or type_ is float:
        try:
            return int(text) if type_ is int else float(text)
        except ValueError:
            raise SettingsError(f"{source} is {text!r}; it must be a number") from None
    return tuple(part.strip() for part in text.split(",") if part.strip())
