"""Answer questions about pictures in this process: no server, no network.

python examples/offline.py model_repository/shapes-vl default_model/shapes-vl/examples/two-shapes.png
"""

import sys

from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM


def main(model_folder: str, *pictures: str) -> None:
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture},
                    {"type": "text", "text": "What is in this image?"},
                ],
            }
        ]
        for picture in pictures
    ]
    with VLM(model_folder) as vlm:
        answers = vlm.generate(conversations, SamplingParams(temperature=0, max_tokens=64))
    for picture, answer in zip(pictures, answers, strict=True):
        print(f"{picture}: {answer.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
