"""What a person reads when the server is up: where it is and how to ask it something."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from triton_vlm.sample_picture import sample_picture, sample_picture_uri

QUESTION = "What is in this image?"


def ready_block(
    *, base_url: str, model_id: str, triton_metrics_url: str, log_dir: Path, elapsed_s: float
) -> str:
    """The block, ready to print; every command in it works as it is.

    Writes the picture that the commands ask about into `log_dir`.
    """
    picture = log_dir / "circle.png"
    picture.write_bytes(sample_picture())
    body = json.dumps(
        {
            "model": model_id,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": QUESTION},
                        {"type": "image_url", "image_url": {"url": sample_picture_uri()}},
                    ],
                }
            ],
        }
    )
    return f"""
triton-vlm is ready after {elapsed_s:.1f} s

  Address   {base_url}
  Model     {model_id}
  Metrics   {base_url.removesuffix("/v1")}/metrics and, of Triton, {triton_metrics_url}
  Logs      {log_dir}
  Stop      ctrl-C

Ask about a small picture, a red circle, or any other --image:

{_program()} chat --url {base_url} --image {picture} "{QUESTION}"

The same with curl:

curl -s {base_url}/chat/completions -H 'Content-Type: application/json' -d '{body}'

The same with the OpenAI SDK (pip install openai):

import base64, openai

client = openai.OpenAI(base_url="{base_url}", api_key="unused")
picture = base64.b64encode(open("{picture}", "rb").read()).decode()
answer = client.chat.completions.create(
    model="{model_id}",
    messages=[{{"role": "user", "content": [
        {{"type": "text", "text": "{QUESTION}"}},
        {{"type": "image_url", "image_url": {{"url": "data:image/png;base64," + picture}}}},
    ]}}],
)
print(answer.choices[0].message.content)
"""


def _program() -> str:
    """How to call this command line from here."""
    if shutil.which("triton-vlm"):
        return "triton-vlm"
    return os.path.relpath(Path(sys.executable).parent / "triton-vlm")
