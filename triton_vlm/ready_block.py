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
    return f"""
triton-vlm is ready after {elapsed_s:.1f} s

  Address   {base_url}
  Model     {model_id}
  Metrics   {base_url.removesuffix("/v1")}/metrics and, of Triton, {triton_metrics_url}
  Logs      {log_dir}
  Stop      ctrl-C
{_KEY_HINT if needs_key else ""}{
        _ask_about_a_picture(base_url, model_id, needs_key, log_dir)
        if sees_images
        else _ask(base_url, model_id, needs_key)
    }"""


def _ask_about_a_picture(base_url: str, model_id: str, needs_key: bool, log_dir: Path) -> str:
    picture = log_dir / "circle.png"
    picture.write_bytes(sample_picture())
    content = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": sample_picture_uri()}},
    ]
    return f"""
Ask about a small picture, a red circle, or any other --image:

{_program()} chat --url {base_url} --image {picture} "{QUESTION}"

The same with curl:

{_curl(base_url, model_id, needs_key, content)}

The same with the OpenAI SDK (pip install openai):

import base64, openai{", os" if needs_key else ""}

client = openai.OpenAI(base_url="{base_url}", api_key={_sdk_key(needs_key)})
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


def _ask(base_url: str, model_id: str, needs_key: bool) -> str:
    return f"""
Ask something; this model reads text only:

{_program()} chat --url {base_url} "{TEXT_QUESTION}"

The same with curl:

{_curl(base_url, model_id, needs_key, TEXT_QUESTION)}

The same with the OpenAI SDK (pip install openai):

import openai{", os" if needs_key else ""}

client = openai.OpenAI(base_url="{base_url}", api_key={_sdk_key(needs_key)})
answer = client.chat.completions.create(
    model="{model_id}",
    messages=[{{"role": "user", "content": "{TEXT_QUESTION}"}}],
)
print(answer.choices[0].message.content)
"""


def _curl(base_url: str, model_id: str, needs_key: bool, content: object) -> str:
    body = json.dumps({"model": model_id, "messages": [{"role": "user", "content": content}]})
    headers = "-H 'Content-Type: application/json'"
    if needs_key:
        headers += f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
    return f"curl -s {base_url}/chat/completions {headers} -d '{body}'"


def _sdk_key(needs_key: bool) -> str:
    return f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"unused"'


def _program() -> str:
    """How to call this command line from here."""
    if shutil.which("triton-vlm"):
        return "triton-vlm"
    return os.path.relpath(Path(sys.executable).parent / "triton-vlm")
