from __future__ import annotations

import dataclasses

import pytest

from openai_frontend.settings import Settings


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"TRITON_VLM_PORT": "1", "TRITON_VLM_HOST": "0.0.0.0", "OTHER": "x"}
    settings = Settings.from_command_line(["--port", "2", "--triton", "t:8001"], environ)
    assert settings == Settings(port=2, host="0.0.0.0", triton="t:8001")


def test_every_kind_of_value_can_be_given_both_ways() -> None:
    expected = Settings(
        allow_private_media=True, allowed_media_domains=("a.example", "b.example"), max_n=3
    )
    flags = ["--allow-private-media", "--allowed-media-domains", "a.example, b.example"]
    assert Settings.from_command_line([*flags, "--max-n", "3"], {}) == expected
    environ = {
        "TRITON_VLM_ALLOW_PRIVATE_MEDIA": "true",
        "TRITON_VLM_ALLOWED_MEDIA_DOMAINS": "a.example,b.example",
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
    ],
)
def test_wrong_value_ends_with_a_sentence(argv, environ, message, capsys) -> None:
    with pytest.raises(SystemExit):
        Settings.from_command_line(argv, environ)
    assert message in capsys.readouterr().err


def test_private_addresses_are_off_by_default() -> None:
    assert not Settings().allow_private_media
    assert Settings().host == "127.0.0.1"
