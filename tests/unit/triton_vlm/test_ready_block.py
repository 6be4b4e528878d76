from __future__ import annotations

import ast
import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from triton_vlm.ready_block import ready_block
from triton_vlm.sample_picture import SIZE, sample_picture


def test_the_sample_picture_is_a_red_circle_on_white() -> None:
    picture = Image.open(io.BytesIO(sample_picture())).convert("RGB")
    assert picture.size == (SIZE, SIZE)
    assert picture.getpixel((SIZE // 2, SIZE // 2)) == (255, 0, 0)
    assert picture.getpixel((0, 0)) == picture.getpixel((SIZE - 1, SIZE // 2)) == (255, 255, 255)


def make_block(log_dir: Path, *, sees_images: bool, needs_key: bool = False) -> str:
    return ready_block(
        base_url="http://127.0.0.1:9000/v1",
        model_id="shapes-vl",
        sees_images=sees_images,
        needs_key=needs_key,
        triton_metrics_url="http://127.0.0.1:8002/metrics",
        log_dir=log_dir,
        elapsed_s=3.21,
    )


@pytest.mark.parametrize("sees_images", [True, False])
def test_the_block_holds_commands_that_can_be_copied(tmp_path: Path, sees_images: bool) -> None:
    block = make_block(tmp_path, sees_images=sees_images)
    assert "ready after 3.2 s" in block
    assert "http://127.0.0.1:9000/  (open it in a browser)" in block
    assert "http://127.0.0.1:9000/metrics" in block
    curl = next(line for line in block.splitlines() if line.startswith("curl"))
    body = json.loads(curl.partition("-d '")[2].removesuffix("'"))
    content = body["messages"][0]["content"]
    assert body["model"] == "shapes-vl"
    python = ast.parse(block[block.index("import openai") :])
    assert content in [ast.literal_eval(node) for node in ast.walk(python) if is_literal(node)]
    if sees_images:
        picture = tmp_path / "circle.png"
        assert f"--image {picture}" in block
        encoded = base64.b64encode(picture.read_bytes()).decode()
        assert content[1]["image_url"]["url"] == f"data:image/png;base64,{encoded}"
    else:
        assert isinstance(content, str)
        assert "image" not in block
        assert list(tmp_path.iterdir()) == []


def is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("sees_images", [True, False])
def test_commands_take_the_key_from_the_environment(tmp_path: Path, sees_images: bool) -> None:
    block = make_block(tmp_path, sees_images=sees_images, needs_key=True)
    assert "export TRITON_VLM_API_KEY=" in block
    curl = next(line for line in block.splitlines() if line.startswith("curl"))
    assert '-H "Authorization: Bearer $TRITON_VLM_API_KEY"' in curl
    python = block[block.index("\nimport ") :]
    compile(python, "snippet", "exec")
    assert 'api_key=os.environ["TRITON_VLM_API_KEY"]' in python
    assert "TRITON_VLM_API_KEY" not in make_block(tmp_path, sees_images=sees_images)
