"""What a person reads when the server is up: where it is and how to ask it something."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from triton_vlm.sample_picture import sample_picture, sample_picture_uri

QUESTION = "What is in this image?"
TEXT_QUESTION = "What can you tell me about the sea?"
KEY_VARIABLE = "TRITON_VLM_API_KEY"
_KEY_HINT = f"""
Clients need an API key; for the commands here:

export {KEY_VARIABLE}=sk-...
"""


def ready_block(
    *,
    base_url: str,
    model_id: str,
    sees_images: bool,
    needs_key: bool,
    triton_metrics_url: str,
    log_dir: Path,
    elapsed_s: float,
) -> str:
    """The block, ready to print; every command in it works as it is, with a key in the environment.

    Writes the picture that the commands ask about into `log_dir`, if the model sees images.
    """
    server = base_url.removesuffix("/v1")
    about, image, question = "something", "", TEXT_QUESTION
    content: object = question
    if sees_images:
        picture = log_dir / "circle.png"
        picture.write_bytes(sample_picture())
        about, image, question = "about a red circle", f"--image {picture} ", QUESTION
        content = [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": sample_picture_uri()}},
        ]
    authorization, sdk_key = "", '"unused"'
    if needs_key:
        authorization = f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
        sdk_key = f'os.environ["{KEY_VARIABLE}"]'
    body = json.dumps({"model": model_id, "messages": [{"role": "user", "content": content}]})
    return f"""
triton-vlm is ready after {elapsed_s:.1f} s

  Page      {server}/  (open it in a browser)
  API       {base_url}
  Model     {model_id}
  Metrics   {server}/metrics and, of Triton, {triton_metrics_url}
  Logs      {log_dir}
  Stop      ctrl-C
{_KEY_HINT if needs_key else ""}
Ask {about} in a terminal:

{_program()} chat --url {base_url} {image}"{question}"

with curl:

curl -s {base_url}/chat/completions -H 'Content-Type: application/json'{authorization} -d '{body}'

or with the OpenAI SDK (pip install openai):

import openai{", os" if needs_key else ""}

client = openai.OpenAI(base_url="{base_url}", api_key={sdk_key})
answer = client.chat.completions.create(
    model="{model_id}",
    messages=[{{"role": "user", "content": {json.dumps(content)}}}],
)
print(answer.choices[0].message.content)
"""


def _program() -> str:
    """How to call this command line from here."""
    if shutil.which("triton-vlm"):
        return "triton-vlm"
    return os.path.relpath(Path(sys.executable).parent / "triton-vlm")
