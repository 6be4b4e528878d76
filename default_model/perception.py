"""Teach the vision tower directly what is where, besides teaching it through the answers.

Through answers alone it takes the language model long to find out where in an image to look. So a
linear head, thrown away in the end, says of every image token what lies there: the colour, name
and place of a shape, the digits and their order, and of the whole picture the background and counts:
of all shapes, and of those of each colour and name.
"""

# K image tokens

from __future__ import annotations

import functools

import torch
from pictures import COLOURS, MAX_DIGITS, MAX_SHAPES, PLACES, SHAPES, Scene, load_font
from torch import Tensor, nn
from torch.nn import functional

TOKEN_SIZE = 28  # pixels
# Numbers of classes. Those of what lies at a token start with "nothing".
NUM_CLASSES = (
    len(COLOURS) + 1,  # the background, grey last
    MAX_SHAPES + 1,
    MAX_DIGITS + 1,
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(PLACES) + 1,
    2,  # whether a shape's middle is here: what is spread over tokens is counted once
    *([11] * MAX_DIGITS),  # the n-th digit, at the token where its middle is
    *([MAX_SHAPES + 1] * (len(COLOURS) + len(SHAPES))),  # the shapes of each colour and name
)
COLOUR, SHAPE, PLACE, MIDDLE, DIGITS = 3, 4, 5, 6, 7
OF_COLOUR = DIGITS + MAX_DIGITS
OF_NAME = OF_COLOUR + len(COLOURS)
COUNT_SOME_WEIGHT = 0.3  # of each: there are many
NUM_LABELS = len(NUM_CLASSES) + 10  # and for each digit, whether it is at the token at all
COLOUR_NAMES = list(COLOURS)


def scene_labels(scene: Scene, width: int, height: int) -> list[list[int]]:
    """The labels of every token of a picture.

    Returns:
        For each token a class for each of `NUM_CLASSES`, then 0 or 1 for each of the ten digits.
    """
    rows, columns = height // TOKEN_SIZE, width // TOKEN_SIZE
    whole = _whole_labels(scene)
    labels = [list(whole) for _ in range(rows * columns)]
    side = min(width, height)
    for shape in scene.shapes:
        row, column = int(shape.y * rows), int(shape.x * columns)
        labels[row * columns + column][MIDDLE] = 1
    for row in range(rows):
        for column in range(columns):
            largest = 0.1 * TOKEN_SIZE**2  # less than that is not worth naming
            for shape in scene.shapes:
                reach = 0.85 * shape.radius * side
                x, y = shape.x * width, shape.y * height
                box = (x - reach, y - reach, x + reach, y + reach)
                area = _overlap(box, row, column)
                if area > largest:
                    largest = area
                    label = labels[row * columns + column]
                    label[COLOUR] = 1 + COLOUR_NAMES.index(shape.colour)
                    label[SHAPE] = 1 + SHAPES.index(shape.name)
                    label[PLACE] = 1 + shape.place
    if scene.number is not None:
        number = scene.number
        edges, ink = _digit_edges(number.font, round(number.font_size * side), number.text)
        y = number.y * height
        for i, digit in enumerate(number.text):
            x = number.x * width + (edges[i] + edges[i + 1]) / 2
            row = min(rows - 1, max(0, int(y / TOKEN_SIZE)))
            column = min(columns - 1, max(0, int(x / TOKEN_SIZE)))
            labels[row * columns + column][DIGITS + i] = 1 + int(digit)
        for row in range(rows):
            for column in range(columns):
                label = labels[row * columns + column]
                for i, digit in enumerate(number.text):
                    left, right = (number.x * width + edge for edge in edges[i : i + 2])
                    area = _overlap((left, y - ink / 2, right, y + ink / 2), row, column)
                    if area > min(0.3 * TOKEN_SIZE**2, 0.5 * ink * (right - left)):
                        label[len(NUM_CLASSES) + int(digit)] = 1
                        label[COLOUR] = 1 + COLOUR_NAMES.index(number.colour)
    return labels


def _whole_labels(scene: Scene) -> list[int]:
    """The labels that all tokens of a picture share; 0 for the others."""
    labels = [0] * NUM_LABELS
    background = (*COLOUR_NAMES, "grey").index(scene.background)
    num_digits = len(scene.number.text) if scene.number else 0
    labels[:COLOUR] = background, len(scene.shapes), num_digits
    for shape in scene.shapes:
        labels[OF_COLOUR + COLOUR_NAMES.index(shape.colour)] += 1
        labels[OF_NAME + SHAPES.index(shape.name)] += 1
    return labels


def _overlap(box: tuple[float, float, float, float], row: int, column: int) -> float:
    """Area that a box shares with a token."""
    left, top = column * TOKEN_SIZE, row * TOKEN_SIZE
    width = min(box[2], left + TOKEN_SIZE) - max(box[0], left)
    height = min(box[3], top + TOKEN_SIZE) - max(box[1], top)
    return max(0.0, width) * max(0.0, height)


@functools.lru_cache(maxsize=20000)
def _digit_edges(font_name: str, font_size: int, text: str) -> tuple[list[float], float]:
    """Where digits begin and end, from the middle of the number, and how tall they are."""
    font = load_font(font_name, max(1, font_size))
    left, top, right, bottom = font.getbbox(text)
    middle = (left + right) / 2
    edges = [font.getlength(text[:i]) - middle for i in range(len(text) + 1)]
    return edges, bottom - top


class PerceptionHead(nn.Module):
    """Says what lies at every image token."""

    def __init__(self, hidden_size: int) -> None:
        """Make the head."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, sum(NUM_CLASSES))
        self.digits = nn.Linear(hidden_size, 10)

    def forward(self, embeds: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Compare with what there is.

        Args:
            embeds: float32 [K, hidden_size] of all pictures.
            labels: int64 [K, NUM_LABELS].

        Returns:
            The loss, and how often each label is right where there is something; counts of colours and
            names together.
        """
        losses, right = [], []
        for i, logits in enumerate(self.linear(embeds).split(NUM_CLASSES, -1)):
            target = labels[:, i]
            there = target > 0 if i >= COLOUR else target >= 0
            found = (logits.argmax(-1) == target)[there]
            right.append(found.float().mean().item() if there.any() else 0.0)
            token_losses = functional.cross_entropy(logits, target, reduction="none")
            # Most tokens show nothing: what is there counts as much as all that is not.
            weights = torch.where(there, 1.0 if i < COLOUR else 5.0, 1.0)
            scale = COUNT_SOME_WEIGHT if i >= OF_COLOUR else 1.0
            losses.append(scale * (token_losses * weights).sum() / weights.sum())
        counted = right[OF_COLOUR:]
        right[OF_COLOUR:] = [sum(counted) / len(counted)]
        logits, target = self.digits(embeds), labels[:, len(NUM_CLASSES) :]
        token_losses = functional.binary_cross_entropy_with_logits(
            logits, target.float(), reduction="none"
        )
        weights = 1.0 + 4.0 * target
        losses.append(10 * (token_losses * weights).sum() / weights.sum())
        right.append(((logits > 0) == (target > 0))[target > 0].float().mean().item())
        return torch.stack(losses).sum(), right
