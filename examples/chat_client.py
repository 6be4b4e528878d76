"""Ask a served model about a picture with the OpenAI client, streaming.

python examples/chat_client.py http://127.0.0.1:9000/v1 default_model/shapes-vl/examples/number.png
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI


def main(base_url: str, picture: str) -> None:
    client = OpenAI(base_url=base_url, api_key="None")
    model = client.models.list().data[0].id
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    stream = client.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in this image?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                ],
            }
        ],
        max_tokens=64,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
