"""Draw the example pictures and record what Hugging Face computes for them.

`python default_model/record_reference.py --model FOLDER` writes FOLDER/examples/*.png,
FOLDER/reference.json (prompts and greedy answers) and FOLDER/reference.safetensors (image
embeddings and logits), so that a build of the model can be verified where there is no PyTorch.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import transformers
from inference import Inference, Message, assistant, system, user
from pictures import Scene, draw_scene, random_scene
from PIL import Image
from safetensors.torch import save_file
from tokenizer import write_json

SEED_PHRASE = (
    "I have two very different images. They are not related at all. Please describe the first "
    "image in one sentence, and then describe the second image in another sentence."
)
MAX_RECORDED_TOKENS = 64
NUM_LOGITS = 3  # the last position of the prompt, and the decode steps after it

# name: (width, height, number of shapes or 0 for a number)
EXAMPLES = {
    "one-shape": (224, 224, 1),
    "two-shapes": (448, 448, 2),
    "three-shapes": (112, 112, 3),
    "four-shapes": (336, 224, 4),
    "wide-shapes": (300, 173, 2),
    "tall-shapes": (131, 257, 3),
    "number": (224, 224, 0),
    "small-number": (112, 112, 0),
    "wide-number": (640, 320, 0),
    "other-number": (448, 448, 0),
}

# name: (messages, examples)
CASES: dict[str, tuple[list[Message], list[str]]] = {
    "text_only": ([user("What can you do?")], []),
    "one_image": ([user("What’s in this image?", None)], ["one-shape"]),
    "one_number": ([user(None, "Which number is in the picture?")], ["number"]),
    "two_images": ([user(SEED_PHRASE, None, None)], ["two-shapes", "other-number"]),
    "odd_size": (
        [user(None, "How many shapes are in this image?")],
        ["wide-shapes"],
    ),
    "wide_and_tall": ([user("Describe both images.", None, None)], ["wide-number", "tall-shapes"]),
    "three_images": (
        [
            system("You answer questions about images."),
            user(None, None, None, "What number is in the second image?"),
        ],
        ["three-shapes", "small-number", "four-shapes"],
    ),
    "multi_turn": (
        [
            user(None, "How many shapes are there?"),
            assistant("There are three shapes."),
            user("What is in this image?"),
        ],
        ["three-shapes"],
    ),
}


def find_scene(rng: random.Random, width: int, height: int, num_shapes: int) -> Scene:
    """A held-out scene with that many shapes, or with a number if 0."""
    while True:
        scene = random_scene(
            rng, width, height, held_out=True, number_share=0.0 if num_shapes else 1.0
        )
        if len(scene.shapes) == num_shapes:
            return scene


def draw_examples(folder: Path) -> None:
    """Write the example pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height, num_shapes) in EXAMPLES.items():
        rng = random.Random(f"example-{name}")
        # As the model sees it: the preprocessor makes larger pictures smaller.
        scale = min(1.0, (112 * 112 / (width * height)) ** 0.5)
        scene = find_scene(rng, round(width * scale), round(height * scale), num_shapes)
        image = draw_scene(scene, width, height)
        image.save(folder / f"{name}.png", optimize=True)


@torch.no_grad()
def record(folder: Path) -> None:
    """Write the reference of the checkpoint in `folder`."""
    inference = Inference(folder)
    cases, tensors = [], {}
    for i, (name, (messages, examples)) in enumerate(CASES.items()):
        paths = [f"examples/{example}.png" for example in examples]
        images = [Image.open(folder / path).convert("RGB") for path in paths]
        inputs = inference.inputs(messages, images)
        if images:
            embeds = inference.model.model.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"]
            ).pooler_output
            tensors[f"case{i}.image_embeds"] = torch.cat(tuple(embeds)).float().contiguous()
        greedy = inference.generate(messages, images, MAX_RECORDED_TOKENS)
        prompt = inputs["input_ids"][0].tolist()
        tail = torch.tensor([greedy[: NUM_LOGITS - 1]], dtype=torch.long)
        input_ids = torch.cat((inputs["input_ids"], tail), 1)
        forced = {
            **inputs,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": (input_ids == inference.model.config.image_token_id).int(),
        }
        logits = inference.model(**forced).logits[0, -NUM_LOGITS:]
        if logits.argmax(-1).tolist() != greedy[:NUM_LOGITS]:
            raise AssertionError(f"{name}: decoding step by step gives other tokens")
        tensors[f"case{i}.logits"] = logits.float().contiguous()
        cases.append(
            {
                "name": name,
                "messages": messages,
                "images": paths,
                "prompt_token_ids": prompt,
                "greedy_token_ids": greedy,
                "answer": inference.tokenizer.decode(greedy, skip_special_tokens=True),
            }
        )
    reference = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cases": cases,
    }
    write_json(folder / "reference.json", reference)
    save_file(tensors, str(folder / "reference.safetensors"))


def main() -> None:
    """Draw and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    folder = parser.parse_args().model
    draw_examples(folder / "examples")
    record(folder)


if __name__ == "__main__":
    main()
