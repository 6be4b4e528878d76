"""Make training batches: pictures, and rows of tokens that ask many questions of each.

A row is a conversation whose end is a tree: a shared prefix (usually the image) and branches, each
a question with its answer. A branch sees the prefix and itself, at the positions it would have
if it came right after the prefix, so it trains exactly what that one conversation would. Drawing
and encoding a picture once for half a dozen questions is what makes training on a CPU affordable.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import questions
from pictures import COLOURS, Scene, draw_scene, is_held_out_number, random_scene
from PIL import Image
from questions import Question
from tokenizer import SPECIAL_IDS
from tokenizers import Tokenizer

# Kinds of row, and how often: while it is easy, and later.
KINDS = {
    "single": (60, 30), "text_first": (16, 15), "turns": (0, 7), "several": (0, 15), "text_several": (0, 11),
    "later": (0, 3), "chat": (4, 3), "drill": (10, 8), "compare": (10, 8),
}  # fmt: skip
FACTOR = 28  # a merged patch, in pixels
DEFAULT_SYSTEM = questions.SYSTEM_PROMPTS[0]
IM_START, IM_END = SPECIAL_IDS["<|im_start|>"], SPECIAL_IDS["<|im_end|>"]
VISION_START, VISION_END = SPECIAL_IDS["<|vision_start|>"], SPECIAL_IDS["<|vision_end|>"]
IMAGE_PAD = SPECIAL_IDS["<|image_pad|>"]

# (width, height) as the model sees them, and how often.
SIZES = (
    ((112, 112), 80), ((112, 84), 6), ((84, 112), 6), ((140, 84), 3), ((84, 140), 3),
    ((140, 56), 1), ((56, 140), 1),
)  # fmt: skip


def _may_show(number: str) -> bool:
    """Whether some training picture may show this number."""
    return not all(is_held_out_number(number, colour) for colour in COLOURS)


@dataclass
class Row:
    """One sequence of a batch.

    Attributes:
        token_ids: the tokens of the prefix and of all branches.
        positions: (temporal, height, width) of each token.
        branches: 0 for the prefix, k for the k-th branch.
        answers: index into `kinds` of the answer a token belongs to, -1 if it is not predicted.
        kinds: the kind of each question.
        pictures: index of each image's picture, in the order of the images.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    _next: int = 0
    _fork: int = 0
    _is_new_branch: bool = False

    def add(self, token_ids: Sequence[int], kind: str | None = None) -> None:
        """Append text: an answer to a question of that kind, or no answer."""
        answer = -1
        if kind is not None:
            answer = len(self.kinds)
            self.kinds.append(kind)
        branch = self.branches[-1] if self.branches else 0
        if self._is_new_branch:
            branch += 1
            self._is_new_branch = False
        for token_id in token_ids:
            self.token_ids.append(token_id)
            self.positions.append((self._next,) * 3)
            self.branches.append(branch)
            self.answers.append(answer)
            self._next += 1

    def add_image(self, picture: int, width: int, height: int) -> None:
        """Append an image; only in the prefix."""
        self.add([VISION_START])
        rows, columns = height // FACTOR, width // FACTOR
        for row in range(rows):
            for column in range(columns):
                self.token_ids.append(IMAGE_PAD)
                self.positions.append((self._next, self._next + row, self._next + column))
                self.branches.append(0)
                self.answers.append(-1)
        self._next += max(rows, columns)
        self.pictures.append(picture)
        self.add([VISION_END])

    def fork(self) -> None:
        """End the prefix here: branches start at this position."""
        self._fork = self._next

    def start_branch(self) -> None:
        """Make what follows a new branch."""
        self._next = self._fork
        self._is_new_branch = True


@dataclass
class Batch:
    """What one training step sees.

    Attributes:
        pictures: the RGB pictures, uint8 [height, width, 3].
        scenes: what the pictures show.
        rows: the sequences.
    """

    pictures: list[np.ndarray] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class BatchMaker:
    """Makes batches from nothing but the seed and their names."""

    def __init__(
        self, tokenizer: Tokenizer, seed: int, max_tokens: int, number_share: float
    ) -> None:
        """Set what all batches share.

        Args:
            tokenizer: the model's.
            seed: of the training run.
            max_tokens: no further branch is started once a row has that many tokens.
            number_share: how many of the pictures show a number.
        """
        self.seed = seed
        self.max_tokens = max_tokens
        self.number_share = number_share
        self.encode = functools.lru_cache(maxsize=20000)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        )

    def make(self, name: str, num_rows: int, num_pictures: int, *, is_easy: bool = False) -> Batch:
        """Make a batch, with pictures of two sizes.

        Args:
            name: of the batch: another name, other contents.
            num_rows: sequences of questions.
            num_pictures: pictures besides those that there are questions about.
            is_easy: only one picture to a row, to start with.
        """
        rng = random.Random(f"{self.seed}-{name}")
        batch = Batch()
        chosen = rng.choices([size for size, _ in SIZES], [weight for _, weight in SIZES], k=2)
        for i in range(num_rows):
            size = chosen[i % 4 == 0]  # few sizes in a batch: the vision tower runs once per size
            shares = [easy if is_easy else later for easy, later in KINDS.values()]
            kind = rng.choices(list(KINDS), shares)[0]
            row = Row()
            self._add_system(rng, row)
            getattr(self, f"_fill_{kind}")(rng, batch, row, size, chosen)
            batch.rows.append(row)
        for _ in range(num_pictures):
            # Digits take longest to learn.
            self._picture(rng, batch, chosen[0], number_share=0.6)
        return batch

    # Parts of a conversation

    def _add_system(self, rng: random.Random, row: Row) -> None:
        draw = rng.random()
        if draw < 0.08:
            return
        prompt = DEFAULT_SYSTEM if draw < 0.85 else rng.choice(questions.SYSTEM_PROMPTS)
        row.add([IM_START, *self.encode(f"system\n{prompt}"), IM_END, *self.encode("\n")])

    def _open_user(self, row: Row) -> None:
        row.add([IM_START, *self.encode("user\n")])

    def _answer(self, row: Row, question: Question, *, is_last: bool) -> None:
        row.add([IM_END, *self.encode("\n"), IM_START, *self.encode("assistant\n")])
        row.add([*self.encode(question.answer), IM_END], question.kind)
        if not is_last:
            row.add(self.encode("\n"))

    def _text(self, rng: random.Random, question: Question) -> tuple[int, ...]:
        return self.encode(questions.vary(rng, question.text))

    def _picture(
        self,
        rng: random.Random,
        batch: Batch,
        size: tuple[int, int],
        number: str | None = None,
        number_share: float | None = None,
    ) -> tuple[int, Scene]:
        """Draw a picture into the batch."""
        width, height = size
        share = self.number_share if number_share is None else number_share
        scene = random_scene(rng, width, height, number_share=share, number=number)
        zoom = rng.choices((1.0, rng.uniform(0.5, 0.9), rng.uniform(1.1, 3.0)), (80, 4, 16))[0]
        image = draw_scene(scene, round(width * zoom), round(height * zoom))
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        batch.pictures.append(np.asarray(image))
        batch.scenes.append(scene)
        return len(batch.pictures) - 1, scene

    # Kinds of conversation

    def _fill_single(self, rng, batch, row, size, sizes) -> None:
        """Image first; the branches are single questions."""
        picture, scene = self._picture(rng, batch, size)
        self._open_user(row)
        row.add_image(picture, *size)
        row.fork()
        while len(row.token_ids) < self.max_tokens:
            question = questions.ask(rng, scene)
            row.start_branch()
            newline = self.encode("\n") if rng.random() < 0.1 else ()
            row.add([*newline, *self._text(rng, question)])
            self._answer(row, question, is_last=True)

    def _fill_text_first(self, rng, batch, row, size, sizes) -> None:
        """Question first, then the image; the branches are follow-up questions."""
        picture, scene = self._picture(rng, batch, size)
        question = questions.ask(rng, scene)
        self._open_user(row)
        row.add(self._text(rng, question))
        row.add_image(picture, *size)
        self._answer(row, question, is_last=False)
        self._branch_turns(rng, row, [scene])

    def _fill_turns(self, rng, batch, row, size, sizes) -> None:
        """Two or three turns about one image, then branches."""
        picture, scene = self._picture(rng, batch, size)
        for i in range(rng.choice((2, 3))):
            question = questions.ask(rng, scene)
            self._open_user(row)
            if i == 0:
                row.add_image(picture, *size)
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=False)
        self._branch_turns(rng, row, [scene])

    def _fill_later(self, rng, batch, row, size, sizes) -> None:
        """A second image in a later turn; plain questions are about the latest one."""
        for i in range(2):
            picture, scene = self._picture(rng, batch, sizes[i])
            question = questions.ask(rng, scene)
            self._open_user(row)
            row.add_image(picture, *sizes[i])
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=False)
        self._branch_turns(rng, row, [scene])

    def _several(self, rng, batch, size, sizes) -> list[tuple[int, Scene, tuple[int, int]]]:
        """Draw two or three pictures that go together."""
        drawn = []
        num_images = 3 if rng.random() < 0.15 else 2
        number = None
        for _ in range(num_images):
            used = size if rng.random() < 0.7 else rng.choice(sizes)
            picture, scene = self._picture(rng, batch, used, number)
            drawn.append((picture, scene, used))
            if num_images == 2 and scene.number is not None:
                draw = rng.random()
                if draw < 0.35:
                    number = scene.number.text
                elif draw < 0.5:
                    number = questions.near_number(rng, scene.number.text)
                if number is not None and not _may_show(number):
                    number = None
        return drawn

    def _fill_several(self, rng, batch, row, size, sizes) -> None:
        """Two or three images first; the branches are single questions."""
        drawn = self._several(rng, batch, size, sizes)
        self._open_user(row)
        for picture, _, used in drawn:
            row.add_image(picture, *used)
        row.fork()
        while len(row.token_ids) < self.max_tokens:
            question = questions.ask_about_several(rng, [scene for _, scene, _ in drawn])
            row.start_branch()
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=True)

    def _fill_text_several(self, rng, batch, row, size, sizes) -> None:
        """Question first, then the images; the branches are follow-up questions."""
        drawn = self._several(rng, batch, size, sizes)
        scenes = [scene for _, scene, _ in drawn]
        question = questions.ask_about_several(rng, scenes)
        self._open_user(row)
        row.add(self._text(rng, question))
        for picture, _, used in drawn:
            row.add_image(picture, *used)
        self._answer(row, question, is_last=False)
        self._branch_turns(rng, row, scenes)

    def _fill_chat(self, rng, batch, row, size, sizes) -> None:
        """No image at all."""
        row.fork()
        while len(row.token_ids) < self.max_tokens // 2:
            row.start_branch()
            question = questions.chat(rng)
            self._open_user(row)
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=True)

    def _fill_drill(self, rng, batch, row, size, sizes) -> None:
        """Nothing but comparisons of the numbers in one or two pictures: a dozen a row."""
        self._open_user(row)
        scenes: list[Scene] = []
        for _ in range(rng.choice((1, 2, 2))):
            number = None
            if scenes and rng.random() < 0.6:
                shown = scenes[0].number.text
                number = shown if rng.random() < 0.7 else questions.near_number(rng, shown)
                if not _may_show(number):
                    number = None
            picture, scene = self._picture(rng, batch, size, number, number_share=1.0)
            row.add_image(picture, *size)
            scenes.append(scene)
        row.fork()
        while len(row.token_ids) < 1.7 * self.max_tokens:
            if len(scenes) == 1:
                question = questions.ask(rng, scenes[0], "is_number")
            elif rng.random() < 0.6:
                question = questions.ask_about_several(rng, scenes, "same_number")
            else:
                i = rng.randrange(2)
                name = f"the {questions.ORDINALS[i]} image"
                question = questions.ask(rng, scenes[i], "is_number", name)
            row.start_branch()
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=True)

    def _fill_compare(self, rng, batch, row, size, sizes) -> None:
        """How comparisons end, the hardest thing to learn: another pair each time, and no image.

        The answer is given up to the verdict, which then follows from what was said.
        """
        row.fork()
        while len(row.token_ids) < 1.7 * self.max_tokens:
            kind = rng.choices(("is_number", "same_number", "more_shapes"), (4, 5, 1))[0]
            share = 0.0 if kind == "more_shapes" else 1.0
            first, second = (random_scene(rng, *size, number_share=share) for _ in range(2))
            if kind == "same_number" and rng.random() < 0.75:
                shown = first.number.text
                number = shown if rng.random() < 0.65 else questions.near_number(rng, shown)
                if _may_show(number):
                    second = random_scene(rng, *size, number=number)
            if kind == "is_number":
                question = questions.ask(rng, first, kind)
            else:
                question = questions.ask_about_several(rng, (first, second), kind)
            said, verdict = question.answer.split(", so ")
            row.start_branch()
            self._open_user(row)
            row.add(self._text(rng, question))
            row.add([IM_END, *self.encode("\n"), IM_START, *self.encode("assistant\n")])
            row.add(self.encode(f"{said},"))
            row.add([*self.encode(f" so {verdict}"), IM_END], "compare")

    def _branch_turns(self, rng: random.Random, row: Row, scenes: list[Scene]) -> None:
        """Add branches that are one more turn of the conversation."""
        row.fork()
        while len(row.token_ids) < self.max_tokens:
            row.start_branch()
            if len(scenes) > 1:
                question = questions.ask_about_several(rng, scenes)
            else:
                question = questions.ask(rng, scenes[0])
            self._open_user(row)
            row.add(self._text(rng, question))
            self._answer(row, question, is_last=True)
