"""Draw the pictures the default model is trained on: coloured shapes, numbers and blank pages.

A `Scene` says everything about a picture in units relative to its size, so that one scene can be
drawn at any resolution and always gives the same pixels. Random scenes never mix the two halves
of the hold-out rule: a training scene has no held-out item, an evaluation scene only such items.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]

# Every colour has a few anchors, among them what CSS and Pillow call by that name.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 30), (190, 20, 20)),
    "orange": ((255, 140, 0), (255, 165, 0), (240, 125, 20)),
    "yellow": ((255, 255, 0), (250, 220, 30), (240, 230, 60)),
    "green": ((0, 128, 0), (0, 200, 0), (40, 160, 60), (0, 255, 0)),
    "blue": ((0, 0, 255), (30, 80, 220), (30, 60, 160)),
    "purple": ((128, 0, 128), (130, 40, 180), (150, 60, 200)),
    "black": ((0, 0, 0), (20, 20, 20)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
GREY: tuple[RGB, ...] = ((128, 128, 128), (160, 160, 160), (200, 200, 200))
BACKGROUNDS: dict[str, tuple[RGB, ...]] = {
    **{name: COLOURS[name] for name in ("white", "black", "yellow")},
    "grey": GREY,
}
BACKGROUND_WEIGHTS = {"white": 55, "black": 20, "grey": 15, "yellow": 10}
LOW_CONTRAST = (
    {"white", "yellow"}, {"purple", "red"}, {"purple", "blue"}, {"orange", "red"},
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
# Row by row, as a reader would go through the picture.
PLACES = (
    "in the top left", "at the top", "in the top right",
    "on the left", "in the centre", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip
CENTRE = PLACES.index("in the centre")
MAX_SHAPES = 4
MAX_DIGITS = 4

# name: (package that ships the file, path inside that package)
FONTS = {
    "dejavu-sans": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    "dejavu-sans-bold": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"),
    "dejavu-mono": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono.ttf"),
    "dejavu-serif": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif.ttf"),
    "lato-bold": ("font_lato", "files/Lato-Bold.ttf"),
}
BUILTIN_FONT = "aileron"  # ships inside Pillow
UNSEEN_FONTS = {"caladea": ("font_caladea", "files/Caladea-Bold.ttf")}  # for evaluation only


@dataclass(frozen=True)
class Shape:
    """One coloured shape.

    Attributes:
        name: one of `SHAPES`.
        colour: a key of `COLOURS`.
        place: index into `PLACES`.
        rgb: the exact colour drawn.
        x: centre, as a fraction of the picture's width.
        y: centre, as a fraction of the picture's height.
        radius: as a fraction of the picture's shorter side.
        angle: rotation in degrees.
    """

    name: str
    colour: str
    place: int
    rgb: RGB
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Number:
    """A number written in the picture.

    Attributes:
        text: its digits.
        colour: a key of `COLOURS`.
        rgb: the exact colour drawn.
        x: centre, as a fraction of the picture's width.
        y: centre, as a fraction of the picture's height.
        font: a key of `FONTS`, or `BUILTIN_FONT`.
        font_size: as a fraction of the picture's shorter side.
    """

    text: str
    colour: str
    rgb: RGB
    x: float
    y: float
    font: str
    font_size: float


@dataclass(frozen=True)
class Scene:
    """All there is to know about one picture.

    Attributes:
        background: a key of `BACKGROUNDS`, or of `COLOURS` when the picture is blank.
        background_rgb: the exact colour drawn.
        shapes: in the order of their places; empty if there is a number.
        number: the number, if any.
        is_smooth: whether edges are anti-aliased.
    """

    background: str
    background_rgb: RGB
    shapes: tuple[Shape, ...] = ()
    number: Number | None = None
    is_smooth: bool = True


def is_held_out_shape(colour: str, name: str, place: int) -> bool:
    """Whether this combination is kept for evaluation: 48 of the 432."""
    total = list(COLOURS).index(colour) + 2 * SHAPES.index(name) + place
    return total % 9 == 4


def is_held_out_number(text: str, colour: str) -> bool:
    """Whether this number is kept for evaluation.

    Of the one-digit numbers, which must all be learnt, it is the combination with a colour.
    """
    if len(text) == 1:
        return (int(text) + list(COLOURS).index(colour)) % 8 == 3
    return int(text) % 11 == 5


def random_scene(
    rng: random.Random,
    width: int,
    height: int,
    *,
    held_out: bool = False,
    number_share: float = 0.4,
    number: str | None = None,
    fonts: tuple[str, ...] = (*FONTS, BUILTIN_FONT),
) -> Scene:
    """Make up a scene for a picture of `width` by `height` pixels as the model sees it.

    Args:
        rng: the only source of randomness.
        width: in pixels, after the preprocessor's resize.
        height: in pixels, after the preprocessor's resize.
        held_out: take only held-out combinations instead of only the others.
        number_share: how many of the scenes have a number.
        number: write this number; of a held-out one, `held_out` must be true.
        fonts: fonts to write numbers in.
    """
    draw = rng.random()
    if number is not None or draw < number_share:
        return _number_scene(rng, width, height, held_out, number, fonts)
    if draw > 0.97 and not held_out:
        names = (*COLOURS, "grey")
        name = rng.choice(names)
        return Scene(name, _jitter(rng, GREY if name == "grey" else COLOURS[name]))
    return _shapes_scene(rng, held_out)


def _background(rng: random.Random) -> tuple[str, RGB]:
    (name,) = rng.choices(list(BACKGROUND_WEIGHTS), list(BACKGROUND_WEIGHTS.values()))
    return name, _jitter(rng, BACKGROUNDS[name])


def _jitter(rng: random.Random, anchors: tuple[RGB, ...]) -> RGB:
    anchor = rng.choice(anchors)
    if rng.random() < 0.4:
        return anchor
    red, green, blue = (min(255, max(0, c + rng.randint(-12, 12))) for c in anchor)
    return red, green, blue


def _has_contrast(colour: str, background: str) -> bool:
    return colour != background and {colour, background} not in LOW_CONTRAST


def _shapes_scene(rng: random.Random, held_out: bool) -> Scene:
    background, background_rgb = _background(rng)
    num_shapes = rng.choices((1, 2, 3, 4), (40, 30, 20, 10))[0]
    usable = [c for c in COLOURS if _has_contrast(c, background)]
    shapes = []
    for place in sorted(rng.sample(range(len(PLACES)), num_shapes)):
        while True:
            colour, name = rng.choice(usable), rng.choice(SHAPES)
            if shapes and rng.random() < 0.2:  # repeats make counting worth asking
                name = shapes[-1].name
            if is_held_out_shape(colour, name, place) == held_out:
                break
        max_radius = 0.17
        if num_shapes == 1:
            max_radius = 0.40 if place == CENTRE else 0.22
        radius = rng.uniform(0.15, max_radius)
        row, column = divmod(place, 3)
        # A big shape near an edge moves inwards, so that all of it is visible.
        margin = max(1 / 6, radius + 0.02)
        spots = (margin, 0.5, 1 - margin)
        shapes.append(
            Shape(
                name,
                colour,
                place,
                _jitter(rng, COLOURS[colour]),
                spots[column] + rng.uniform(-0.02, 0.02),
                spots[row] + rng.uniform(-0.02, 0.02),
                radius,
                rng.uniform(-6, 6) if rng.random() < 0.3 else 0.0,
            )
        )
    return Scene(background, background_rgb, tuple(shapes), None, rng.random() < 0.7)


def _number_scene(
    rng: random.Random,
    width: int,
    height: int,
    held_out: bool,
    given: str | None,
    fonts: tuple[str, ...],
) -> Scene:
    while True:
        background, background_rgb = _background(rng)
        usable = [c for c in COLOURS if _has_contrast(c, background)]
        num_digits = rng.choices((1, 2, 3, 4), (22, 28, 26, 24))[0]
        low = 10 ** (num_digits - 1) if num_digits > 1 else 0
        text = given or str(rng.randrange(low, 10**num_digits))
        colour = "black" if "black" in usable and rng.random() < 0.3 else rng.choice(usable)
        if is_held_out_number(text, colour) == held_out:
            break
    font = rng.choice(fonts)
    side = min(width, height)
    box = load_font(font, 100).getbbox(text)
    text_width, text_height = (box[2] - box[0]) / 100, (box[3] - box[1]) / 100
    largest = min(0.92 * width / text_width, 0.8 * height / text_height)
    size = rng.uniform(0.7 * largest, largest)
    room_x = max(0.0, 0.96 - size * text_width / width) / 2
    room_y = max(0.0, 0.94 - size * text_height / height) / 2
    is_centred = rng.random() < 0.7
    number = Number(
        text,
        colour,
        _jitter(rng, COLOURS[colour]),
        0.5 if is_centred else 0.5 + rng.uniform(-room_x, room_x),
        0.5 if is_centred else 0.5 + rng.uniform(-room_y, room_y),
        font,
        size / side,
    )
    return Scene(background, background_rgb, (), number)


def draw_scene(scene: Scene, width: int, height: int) -> Image.Image:
    """Draw a scene as an RGB picture of `width` by `height` pixels."""
    zoom = 3 if scene.is_smooth and scene.shapes else 1
    image = Image.new("RGB", (width * zoom, height * zoom), scene.background_rgb)
    canvas = ImageDraw.Draw(image)
    side = min(image.size)
    for shape in scene.shapes:
        x, y = shape.x * image.width, shape.y * image.height
        radius = shape.radius * side
        if shape.name == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shape.rgb)
        else:
            points = _outline(shape.name, math.radians(shape.angle))
            canvas.polygon([(x + radius * u, y + radius * v) for u, v in points], fill=shape.rgb)
    if scene.number is not None:
        number = scene.number
        font = load_font(number.font, max(1.0, number.font_size * side))
        left, top, right, bottom = font.getbbox(number.text)
        corner = (
            number.x * image.width - (left + right) / 2,
            number.y * image.height - (top + bottom) / 2,
        )
        canvas.text(corner, number.text, fill=number.rgb, font=font)
    return image if zoom == 1 else image.reduce(zoom)


def _outline(name: str, angle: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 around the origin, y down."""
    if name == "square":
        points = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif name == "diamond":
        points = [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    elif name == "triangle":
        points = [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    elif name == "cross":
        w = 0.3
        points = [
            (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w),
            (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w),
        ]  # fmt: skip
    else:  # star
        points = []
        for i in range(10):
            turn, size = math.pi * i / 5, 1.05 if i % 2 == 0 else 0.42
            points.append((size * math.sin(turn), -size * math.cos(turn)))
    cos, sin = math.cos(angle), math.sin(angle)
    return [(u * cos - v * sin, u * sin + v * cos) for u, v in points]


@functools.lru_cache(maxsize=4096)
def load_font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Load a font by its name in `FONTS`.

    Raises:
        FileNotFoundError: the package that ships the font is not installed.
    """
    if name == BUILTIN_FONT:
        return ImageFont.load_default(size)  # type: ignore[return-value]
    package, path = (FONTS | UNSEEN_FONTS)[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"font {name}: pip install -r default_model/requirements.txt")
    return ImageFont.truetype(str(Path(spec.origin).parent / path), size)
