"""file: URLs: one folder, off by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_backend import FakeBackend, text_deltas

from openai_frontend.app import create_app
from openai_frontend.settings import Settings, SettingsError

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`pictures` is allowed; `secret.png` beside it is not."""
    pictures = tmp_path / "pictures"
    (pictures / "sub folder").mkdir(parents=True)
    (pictures / "sub folder" / "ä.png").write_bytes(PNG)
    (pictures / "a.png").write_bytes(PNG)
    (pictures / "notes.txt").write_bytes(b"no picture")
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "pictures-of-others").mkdir()
    (tmp_path / "pictures-of-others" / "a.png").write_bytes(PNG)
    (pictures / "inside.png").symlink_to("a.png")
    (pictures / "outside.png").symlink_to(tmp_path / "secret.png")
    (pictures / "up").symlink_to("..")
    os.mkfifo(pictures / "pipe.png")
    return pictures


@pytest.fixture
def ask(make_proxy, folder):
    proxy = make_proxy(
        FakeBackend(text_deltas("a")),
        settings=Settings(allowed_media_path=str(folder), max_image_bytes=1000),
    )

    async def ask(url: str):
        part = {"type": "image_url", "image_url": {"url": url}}
        response = await proxy.chat(messages=[{"role": "user", "content": [part]}])
        images = proxy.backend.calls[-1].images if response.status_code == 200 else None
        return response, images

    return ask


@pytest.mark.parametrize(
    "path",
    ["a.png", "inside.png", "sub%20folder/%C3%A4.png", "sub folder/ä.png", "sub%20folder/../a.png"],
)
async def test_file_of_the_folder_is_read(ask, folder, path) -> None:
    response, images = await ask(f"file://{folder}/{path}")
    assert response.status_code == 200, response.text
    assert images == [PNG]


@pytest.mark.parametrize(
    "url",
    [
        "file://{folder}/../secret.png",
        "file://{folder}/%2e%2e/secret.png",
        "file://{folder}/..%2fsecret.png",
        "file://{folder}/outside.png",
        "file://{folder}/up/secret.png",
        "file://{folder}-of-others/a.png",
        "file://{folder}",
        "file:///etc/passwd",
        "file:///etc/no-such-file",
        "file:///proc/self/environ",
        "file:///",
        "file://localhost{folder}/a.png",
        "file://evil.example/a.png",
        "file:{folder}/a.png",
        "file:a.png",
        "file://{folder}/a.png%00.png",
        "file://{folder}/a.png\x00",
        "file://{folder}/%ff.png",
        "file://{folder}/a.png?x",
        "file://{folder}/a.png#x",
    ],
)
async def test_everything_else_is_refused_and_told_apart_from_nothing(ask, folder, url) -> None:
    """CVE-2026-47612, CVE-2026-47613: `..`, symbolic links and percent-encoding left the folder."""
    response, _ = await ask(url.format(folder=folder))
    assert response.status_code == 400
    error = response.json()["error"]
    expected = "image_file_not_found" if url == "file://{folder}" else "invalid_image_url"
    assert error["code"] == expected
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert str(folder) not in error["message"]


@pytest.mark.parametrize("path", ["missing.png", "pipe.png", "sub%20folder"])
async def test_what_is_no_file_is_not_found(ask, folder, path) -> None:
    """A pipe would block for ever."""
    response, _ = await ask(f"file://{folder}/{path}")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "image_file_not_found"


async def test_file_has_the_limits_of_every_image(ask, folder) -> None:
    (folder / "large.png").write_bytes(PNG + bytes(1000))
    response, _ = await ask(f"file://{folder}/large.png")
    assert response.json()["error"]["code"] == "image_file_too_large"
    response, _ = await ask(f"file://{folder}/notes.txt")
    assert response.json()["error"]["code"] == "invalid_image_format"


async def test_files_are_refused_by_default(make_proxy, folder) -> None:
    """CVE-2025-6242; SGLang, TensorRT-LLM and LMDeploy read any path."""
    proxy = make_proxy(settings=Settings(allow_private_media=True))
    for url in (f"file://{folder}/a.png", f"FILE://{folder}/a.png", f"{folder}/a.png"):
        part = {"type": "image_url", "image_url": {"url": url}}
        response = await proxy.chat(messages=[{"role": "user", "content": [part]}])
        assert response.json()["error"]["code"] == "invalid_image_url"
    assert proxy.backend.calls == []


def test_folder_that_does_not_exist_is_refused_at_the_start(tmp_path) -> None:
    with pytest.raises(SettingsError, match="not a folder"):
        create_app(Settings(allowed_media_path=str(tmp_path / "missing")), FakeBackend())
