"""Evaluate the default model: `python default_model/evaluate.py --model FOLDER`.

Asks 1,000 questions about pictures whose every shape (as colour, shape and place) or number was
kept out of training, one `generate` of Hugging Face each, and counts the answers that are exactly
right. Prints a table by kind of question and by size of picture and writes FOLDER/evaluation.json.

`--built model_repository/NAME` asks the model that was built from it, in this project's engine: what its
precision costs. That writes nothing.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import questions
import torch
from inference import BuiltModel, Inference, Message, assistant, system, user
from pictures import BUILTIN_FONT, FONTS, UNSEEN_FONTS, Scene, draw_scene, random_scene
from PIL import Image
from tokenizer import write_json

SEED = 20261123
# Single-image kinds of question, several images, and the last question of a conversation.
NUM_QUESTIONS = {
    "describe": 150, "colour": 60, "background": 30, "which_shape": 50, "at_place": 60, "count": 60,
    "count_some": 60, "where": 80, "exists": 70, "is_colour": 40, "number": 100, "num_digits": 20,
    "is_number": 40, "describe_both": 60, "more_shapes": 30, "same_number": 30, "one_of_two": 40,
    "multi_turn": 20,
}  # fmt: skip
# (width, height) as drawn, and how often. The preprocessor makes the large ones smaller.
SIZES = (
    ((112, 112), 25), ((160, 160), 10), ((224, 224), 25), ((448, 448), 20), ((224, 160), 5),
    ((150, 200), 5), ((640, 480), 10),
)  # fmt: skip
assert sum(NUM_QUESTIONS.values()) == 1000


@dataclass
class Case:
    """One question to ask.

    Attributes:
        kind: a key of `NUM_QUESTIONS`.
        size: "WIDTHxHEIGHT" of the pictures as drawn.
        messages: the conversation up to the question.
        images: the pictures.
        answer: the right answer.
    """

    kind: str
    size: str
    messages: list[Message]
    images: list[Image.Image]
    answer: str


def make_cases(seed: int, fonts: Sequence[str]) -> list[Case]:
    """Make up all questions, from nothing but the seed."""
    rng = random.Random(seed)
    return [_make_case(rng, kind, fonts) for kind, n in NUM_QUESTIONS.items() for _ in range(n)]


def _draw(
    rng: random.Random,
    size: tuple[int, int],
    fonts: Sequence[str],
    number_share: float,
    number: str | None = None,
) -> tuple[Scene, Image.Image]:
    # As the model sees it, so that digits are not smaller than in training.
    scale = min(1.0, (112 * 112 / (size[0] * size[1])) ** 0.5)
    scene = random_scene(
        rng,
        round(size[0] * scale),
        round(size[1] * scale),
        held_out=True,
        number_share=number_share,
        number=number,
        fonts=tuple(fonts),
    )
    return scene, draw_scene(scene, *size)


def _make_case(rng: random.Random, kind: str, fonts: Sequence[str]) -> Case:
    sizes, weights = zip(*SIZES, strict=True)
    (size,) = rng.choices(sizes, weights)
    shown = f"{size[0]}x{size[1]}"
    number_share = {"number": 0.9, "num_digits": 1.0, "is_number": 1.0}.get(kind, 0.3)
    if kind in questions.PAIR_KINDS:
        return _make_pair_case(rng, kind, size, fonts)
    while True:
        scene, image = _draw(rng, size, fonts, number_share)
        question = questions.ask(rng, scene, None if kind == "multi_turn" else kind)
        if question is not None:
            break
    text = questions.vary(rng, question.text)
    messages: list[Message] = []
    if rng.random() < 0.1:
        messages.append(system(rng.choice(questions.SYSTEM_PROMPTS)))
    if kind == "multi_turn":
        for i in range(rng.choice((1, 2))):
            before = questions.ask(rng, scene)
            assert before is not None
            messages.append(user(None, before.text) if i == 0 else user(before.text))
            messages.append(assistant(before.answer))
        messages.append(user(text))
    else:
        messages.append(user(None, text) if rng.random() < 0.5 else user(text, None))
    return Case(kind, shown, messages, [image], question.answer)


def _make_pair_case(
    rng: random.Random, kind: str, size: tuple[int, int], fonts: Sequence[str]
) -> Case:
    number_share = {"same_number": 1.0, "more_shapes": 0.1}.get(kind, 0.4)
    while True:
        first, first_image = _draw(rng, size, fonts, number_share)
        number = None
        if kind == "same_number" and rng.random() < 0.5:
            number = first.number.text if first.number else None
        second, second_image = _draw(rng, size, fonts, number_share, number)
        question = questions.ask_about_several(rng, [first, second], kind)
        if question is not None:
            break
    text = questions.vary(rng, question.text)
    message = user(None, None, text) if rng.random() < 0.5 else user(text, None, None)
    images = [first_image, second_image]
    return Case(kind, f"{size[0]}x{size[1]}", [message], images, question.answer)


def evaluate(cases: Sequence[Case], answers: Iterable[str]) -> dict:
    """Count the right answers by kind and by size."""
    asked: collections.Counter[str] = collections.Counter()
    right: collections.Counter[str] = collections.Counter()
    sizes_asked: collections.Counter[str] = collections.Counter()
    sizes_right: collections.Counter[str] = collections.Counter()
    wrong = []
    for case, answer in zip(cases, answers, strict=True):
        is_right = answer == case.answer
        asked[case.kind] += 1
        right[case.kind] += is_right
        sizes_asked[case.size] += 1
        sizes_right[case.size] += is_right
        if not is_right:
            question = case.messages[-1]["content"]
            text = next(part["text"] for part in question if part["type"] == "text")
            wrong.append(
                {
                    "kind": case.kind,
                    "size": case.size,
                    "question": text,
                    "expected": case.answer,
                    "got": answer,
                }
            )
    return {
        "num_questions": len(cases),
        "num_right": sum(right.values()),
        "accuracy": round(sum(right.values()) / len(cases), 4),
        "by_kind": {kind: [right[kind], asked[kind]] for kind in asked},
        "by_size": {size: [sizes_right[size], sizes_asked[size]] for size in sizes_asked},
        "wrong": wrong,
    }


def table(result: dict) -> str:
    """The result as a Markdown table."""
    lines = ["| question | right | of | % |", "| --- | ---: | ---: | ---: |"]
    rows = [*result["by_kind"].items(), *result["by_size"].items()]
    rows.append(("**all**", [result["num_right"], result["num_questions"]]))
    for name, (right, of) in rows:
        lines.append(f"| {name} | {right} | {of} | {100 * right / of:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate, print the table and write evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--built", type=Path, help="ask this built model instead; writes nothing")
    parser.add_argument("--only", type=int, help="ask every N-th question only; writes nothing")
    parser.add_argument("--unseen-font", action="store_true", help="numbers in a font kept out")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fonts = list(UNSEEN_FONTS) if args.unseen_font else [*FONTS, BUILTIN_FONT]
    cases = make_cases(args.seed, fonts)[:: args.only or 1]
    started = time.monotonic()
    conversations = [(case.messages, case.images) for case in cases]
    model = BuiltModel(args.built) if args.built else Inference(args.model)
    result = evaluate(cases, model.answers(conversations))
    sys.stdout.write(f"{table(result)}\n\n{time.monotonic() - started:.0f} s\n")
    if args.only:
        for item in result["wrong"]:
            sys.stdout.write(f"{item}\n")
    elif not args.unseen_font and not args.built:
        write_json(args.model / "evaluation.json", {"seed": args.seed, **result})


if __name__ == "__main__":
    main()
