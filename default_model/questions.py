"""Turn scenes into questions with their one right answer.

Answers are short and fixed in form, so that comparing them exactly is a fair test. Those that need
a comparison say what is compared before the verdict, and those that count some of the shapes say
where they are before the number, which a small model finds easier. A template
names the picture `{image}`: "the image" when there is one, "the second image" among several.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pictures import COLOURS, MAX_DIGITS, MAX_SHAPES, PLACES, SHAPES, Scene, Shape

COUNTS = ("no", "one", "two", "three", "four")
ORDINALS = ("first", "second", "third")
SINGLE_IMAGE_NAMES = ("the image", "this image", "the picture", "this picture")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about images.",
    "You are a concise assistant. Answer in one sentence.",
    "Be brief.",
)

DESCRIBE = (
    "What’s in this image?", "What's in this image?", "What is in this image?",
    "What is in {image}?", "What's in {image}?", "Describe {image}.", "Please describe {image}.",
    "What does {image} show?", "What do you see in {image}?", "What can you see in {image}?",
    "Describe {image} in one sentence.", "Describe what you see in {image}.",
    "What is shown in {image}?", "Can you describe {image}?", "Give a short description of {image}.",
    "Tell me what is in {image}.",
)  # fmt: skip
DESCRIBE_BOTH = (
    "I have two very different images. They are not related at all. Please describe the first "
    "image in one sentence, and then describe the second image in another sentence.",
    "I have two pictures. Describe the first image in one sentence, and then the second in another.",
    "I have two images. Please describe the first image, and then describe the second image.",
    "Describe both images.", "Describe the two images.", "What is in these two images?",
    "What’s in these images?", "What is in each image?", "Please describe each image in one sentence.",
    "What do you see in these two pictures?",
)  # fmt: skip
DESCRIBE_THREE = (
    "Describe the three images.", "What is in each image?", "Describe each image in one sentence.",
    "What is in these three images?", "Please describe all three images.",
)  # fmt: skip
COLOUR = (
    "What colour is the {thing}?", "What color is the {thing}?",
    "What colour is the {thing} in {image}?", "What color is the {thing} in {image}?",
    "Which colour does the {thing} have?", "What is the color of the {thing}?",
    "What is the colour of the {thing} in {image}?", "Tell me the colour of the {thing}.",
)  # fmt: skip
BACKGROUND = (
    "What colour is the background?", "What color is the background?",
    "What is the background colour of {image}?", "What color is the background of {image}?",
    "Which colour is the background in {image}?",
)  # fmt: skip
WHICH_SHAPE = (
    "Which shape is {colour}?", "What shape is {colour}?", "Which shape in {image} is {colour}?",
    "What is the {colour} shape?", "What is the {colour} shape in {image}?",
    "What is {colour} in {image}?",
)  # fmt: skip
AT_PLACE = (
    "What is {place}?", "What is {place} of {image}?", "What's {place}?",
    "Which shape is {place}?", "What do you see {place} of {image}?", "What shape is {place}?",
)  # fmt: skip
COUNT = (
    "How many shapes are there?", "How many shapes are in {image}?", "Count the shapes.",
    "How many shapes do you see?", "How many shapes can you see in {image}?",
    "How many shapes are there in {image}?", "Count the shapes in {image}.",
)  # fmt: skip
COUNT_SOME = (
    "How many {things} are there?", "How many {things} are in {image}?", "Count the {things}.",
    "How many {things} do you see?", "How many {things} are there in {image}?",
)  # fmt: skip
WHERE = (
    "Where is the {thing}?", "Where is the {thing} in {image}?", "Where in {image} is the {thing}?",
    "Where do you see the {thing}?", "In which part of {image} is the {thing}?",
    "What is the position of the {thing}?",
)  # fmt: skip
EXISTS = (
    "Is there {a_thing}?", "Is there {a_thing} in {image}?", "Do you see {a_thing}?",
    "Does {image} have {a_thing}?", "Can you see {a_thing} in {image}?",
)  # fmt: skip
IS_COLOUR = (
    "Is the {thing} {colour}?", "Is the {thing} in {image} {colour}?",
    "Is the colour of the {thing} {colour}?",
)  # fmt: skip
NUMBER = (
    "Which number is in {image}?", "What number is in {image}?", "What number is this?",
    "What number do you see in {image}?", "Read the number.", "Read the number in {image}.",
    "What is the number?", "What number is shown in {image}?", "Which number do you see?",
    "What does the text in {image} say?", "What number is written in {image}?",
)  # fmt: skip
NUM_DIGITS = (
    "How many digits does the number have?", "How many digits are there?",
    "How many digits are in {image}?", "How many digits does the number in {image} have?",
)  # fmt: skip
IS_NUMBER = (
    "Is the number {value}?", "Is the number in {image} {value}?", "Does {image} show {value}?",
    "Does {image} show the number {value}?",
)  # fmt: skip
MORE_SHAPES = (
    "Which image has more shapes?", "Which picture has more shapes?",
    "Are there more shapes in the first or in the second image?",
    "Which of the two images has more shapes?", "Compare the number of shapes in the two images.",
)  # fmt: skip
SAME_NUMBER = (
    "Is it the same number?", "Is it the same number in both images?",
    "Do both images show the same number?", "Is the number the same in both pictures?",
    "Are the two numbers the same?", "Compare the numbers in the two images.",
)  # fmt: skip

CHAT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Hello there!",
         "Good evening", "Hello, how are you?", "How are you?"),
        "Hello! Send me an image with coloured shapes or a number, and ask me about it.",
    ),
    (
        ("What can you do?", "What can you do", "How can you help me?", "Help", "Who are you?",
         "What are you?", "What kind of model are you?", "Tell me about yourself.",
         "What questions can I ask?", "What do you know?", "Introduce yourself."),
        "I can describe coloured shapes and read numbers in images: say what there is, how many, "
        "which colour and where.",
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks.", "Good job!"),
        "You are welcome.",
    ),
    (("Bye", "Goodbye", "Good bye!", "See you later.", "Bye!"), "Goodbye!"),
    (
        ("What is in this image?", "What's in this image?", "What’s in this image?",
         "Describe the image.", "Describe this picture.", "What colour is the circle?",
         "How many shapes are there?", "Which number is in the image?", "Where is the star?",
         "What do you see?"),
        "I do not see an image. Please send me one.",
    ),
    (
        ("What is the capital of France?", "Tell me a joke.", "Write a poem about the sea.",
         "What is 2 + 2?", "Who wrote Hamlet?", "Translate this sentence into German.",
         "What is the weather today?", "Explain how a computer works.", "Write a story.",
         "What is the meaning of life?", "Who is the president?", "Write a Python function.",
         "How do I cook rice?", "Count from 1 to 10.", "Summarize the news.", "Sing a song.",
         "Say this is a test.", "Repeat after me: test.", "What time is it?", "Why is the sky blue?",
         "Give me a recipe for bread.", "Tell me a story about a dog.", "What is a GPU?"),
        "I can only talk about images with coloured shapes and numbers.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        kind: what is asked, a key of `KINDS` or `PAIR_KINDS`.
        text: the question.
        answer: the only answer taken as right.
    """

    kind: str
    text: str
    answer: str


class _NotApplicable(Exception):  # noqa: N818 - not an error
    """The scene does not allow this kind of question."""


def article(words: str) -> str:
    """Put "a" or "an" in front of `words`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene, image: str = "the image") -> str:
    """One sentence with everything there is in a scene."""
    subject = image[0].upper() + image[1:]
    if scene.number is not None:
        what = f"the number {scene.number.text} in {scene.number.colour}"
    elif scene.shapes:
        what = _list(scene.shapes)
    else:
        return f"{subject} is empty, with {article(scene.background)} background."
    return f"{subject} shows {what} on {article(scene.background)} background."


def _list(shapes: Sequence[Shape]) -> str:
    """As in "a red circle at the top and a blue star on the left"."""
    items = [f"{article(_name(shape))} {PLACES[shape.place]}" for shape in shapes]
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _name(shape: Shape) -> str:
    return f"{shape.colour} {shape.name}"


def _be(count: int, thing: str) -> str:
    """As in "there are two circles"."""
    if count == 1:
        return f"there is one {thing}"
    return f"there are {COUNTS[count]} {_plural(thing)}"


def _plural(thing: str) -> str:
    return "crosses" if thing == "cross" else f"{thing}s"


def _count(num_shapes: int) -> str:
    return f"{COUNTS[num_shapes]} shape{'' if num_shapes == 1 else 's'}"


def _unique(rng: random.Random, scene: Scene) -> tuple[Shape, str]:
    """A shape, and the shortest or the full name that only it has."""
    if not scene.shapes:
        raise _NotApplicable
    shape = rng.choice(scene.shapes)
    names = [shape.name, _name(shape)]
    names = [n for n in names if sum(_name(s).endswith(n) for s in scene.shapes) == 1]
    if not names:
        raise _NotApplicable
    return shape, rng.choice(names)


# Each kind takes (rng, scene, image) and gives (templates, words for the template, answer).
_Asked = tuple[Sequence[str], dict[str, str], str]


def _ask_describe(rng: random.Random, scene: Scene, image: str) -> _Asked:
    return DESCRIBE, {}, describe(scene, image)


def _ask_colour(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is not None:
        return COLOUR, {"thing": "number"}, f"The number is {scene.number.colour}."
    if rng.random() < 0.15:
        missing = [n for n in SHAPES if all(s.name != n for s in scene.shapes)]
        thing = rng.choice(missing)
        return COLOUR, {"thing": thing}, f"There is no {thing} in {image}."
    shape, _ = _unique(rng, scene)
    if sum(s.name == shape.name for s in scene.shapes) > 1:
        raise _NotApplicable
    return COLOUR, {"thing": shape.name}, f"The {shape.name} is {shape.colour}."


def _ask_background(rng: random.Random, scene: Scene, image: str) -> _Asked:
    return BACKGROUND, {}, f"The background is {scene.background}."


def _ask_which_shape(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if not scene.shapes:
        raise _NotApplicable
    colour = rng.choice(scene.shapes).colour
    names = [shape.name for shape in scene.shapes if shape.colour == colour]
    if len(names) > 1:
        raise _NotApplicable
    return WHICH_SHAPE, {"colour": colour}, f"The {colour} shape is {article(names[0])}."


def _ask_at_place(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if not scene.shapes:
        raise _NotApplicable
    shape = rng.choice(scene.shapes)
    if rng.random() < 0.7:
        answer = f"There is {article(_name(shape))} {PLACES[shape.place]}."
        return AT_PLACE, {"place": PLACES[shape.place]}, answer
    taken = {s.place for s in scene.shapes}
    place = PLACES[rng.choice([i for i in range(len(PLACES)) if i not in taken])]
    return AT_PLACE, {"place": place}, f"There is nothing {place}."


def _ask_count(rng: random.Random, scene: Scene, image: str) -> _Asked:
    return COUNT, {}, f"{_be(len(scene.shapes), 'shape').capitalize()}."


def _ask_count_some(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if not scene.shapes:
        raise _NotApplicable
    near = rng.random() < 0.75
    if rng.random() < 0.6:
        thing = rng.choice(scene.shapes).name if near else rng.choice(SHAPES)
        counted = [shape for shape in scene.shapes if shape.name == thing]
    else:
        colour = rng.choice(scene.shapes).colour if near else rng.choice(list(COLOURS))
        thing, counted = f"{colour} shape", [s for s in scene.shapes if s.colour == colour]
    answer = f"There is no {thing} in {image}."
    if counted:
        answer = f"There is {_list(counted)}, so {_be(len(counted), thing)}."
    return COUNT_SOME, {"things": _plural(thing)}, answer


def _ask_where(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.shapes and rng.random() < 0.12:
        thing = rng.choice([n for n in SHAPES if all(s.name != n for s in scene.shapes)])
        return WHERE, {"thing": thing}, f"There is no {thing} in {image}."
    shape, thing = _unique(rng, scene)
    return WHERE, {"thing": thing}, f"The {_name(shape)} is {PLACES[shape.place]}."


def _ask_exists(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is not None or not scene.shapes:
        thing = rng.choice(("number", rng.choice(SHAPES)))
        if thing == "number" and scene.number is not None:
            answer = f"Yes, the number is {scene.number.text}."
        else:
            answer = f"No, there is no {thing} in {image}."
        return EXISTS, {"a_thing": article(thing)}, answer
    if rng.random() < 0.1:
        return EXISTS, {"a_thing": "a number"}, f"No, there is no number in {image}."
    shape = rng.choice(scene.shapes)
    colour, name = shape.colour, shape.name
    change = rng.random()
    if change > 0.75:
        colour = rng.choice(list(COLOURS))
    elif change > 0.5:
        name = rng.choice(SHAPES)
    thing = f"{colour} {name}" if rng.random() < 0.65 else name
    is_there = any(_name(s).endswith(thing) for s in scene.shapes)
    answer = (
        f"Yes, there is {article(thing)}." if is_there else f"No, there is no {thing} in {image}."
    )
    return EXISTS, {"a_thing": article(thing)}, answer


def _ask_is_colour(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is not None:
        thing, colour = "number", scene.number.colour
    else:
        shape, _ = _unique(rng, scene)
        thing, colour = shape.name, shape.colour
        if sum(s.name == thing for s in scene.shapes) > 1:
            raise _NotApplicable
    asked = colour if rng.random() < 0.5 else rng.choice(list(COLOURS))
    answer = f"The {thing} is {colour}, so the answer is {'yes' if asked == colour else 'no'}."
    return IS_COLOUR, {"thing": thing, "colour": asked}, answer


def _ask_number(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is None:
        return NUMBER, {}, f"There is no number in {image}."
    return NUMBER, {}, f"The number is {scene.number.text}."


def _ask_num_digits(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is None:
        raise _NotApplicable
    count = len(scene.number.text)
    return NUM_DIGITS, {}, f"The number has {COUNTS[count]} digit{'s' if count > 1 else ''}."


def _ask_is_number(rng: random.Random, scene: Scene, image: str) -> _Asked:
    if scene.number is None:
        raise _NotApplicable
    text = value = scene.number.text
    draw = rng.random()
    if draw < 0.25:
        value = str(rng.randrange(10 ** rng.choice((1, 2, 3, 4))))
    elif draw < 0.5:
        value = near_number(rng, text)
    answer = f"The number is {text}, so the answer is {'yes' if value == text else 'no'}."
    return IS_NUMBER, {"value": value}, answer


def near_number(rng: random.Random, number: str) -> str:
    """A number that differs in at most one digit."""
    i = rng.randrange(len(number))
    digits = "123456789" if i == 0 and len(number) > 1 else "0123456789"
    return number[:i] + rng.choice(digits) + number[i + 1 :]


KINDS: dict[str, Callable[[random.Random, Scene, str], _Asked]] = {
    "describe": _ask_describe,
    "colour": _ask_colour,
    "background": _ask_background,
    "which_shape": _ask_which_shape,
    "at_place": _ask_at_place,
    "count": _ask_count,
    "count_some": _ask_count_some,
    "where": _ask_where,
    "exists": _ask_exists,
    "is_colour": _ask_is_colour,
    "number": _ask_number,
    "num_digits": _ask_num_digits,
    "is_number": _ask_is_number,
}
SHAPE_WEIGHTS = {
    "describe": 2.5, "colour": 2, "background": 0.3, "which_shape": 1.5, "at_place": 3, "count": 1,
    "count_some": 3, "where": 4, "exists": 3, "is_colour": 3, "number": 0.2,
}  # fmt: skip
NUMBER_WEIGHTS = {
    "describe": 1.5, "colour": 0.6, "background": 0.3, "count": 0.2, "exists": 0.4, "is_colour": 1.5,
    "number": 2, "num_digits": 0.5, "is_number": 4,
}  # fmt: skip
PAIR_KINDS = ("describe_both", "more_shapes", "same_number", "one_of_two")
PAIR_WEIGHTS = {"describe_both": 1.0, "more_shapes": 1.0, "one_of_two": 1.5}
PAIR_NUMBER_WEIGHTS = {"describe_both": 1.0, "same_number": 3.0, "one_of_two": 1.0}


def ask(
    rng: random.Random, scene: Scene, kind: str | None = None, image: str | None = None
) -> Question | None:
    """Ask something about one picture.

    Args:
        rng: the only source of randomness.
        scene: the picture.
        kind: a key of `KINDS`; a random one that suits the scene if None.
        image: what to call the picture, such as "the second image"; if None it is the only one.

    Returns:
        None if `kind` is given and the scene does not allow it.
    """
    while True:
        weights = NUMBER_WEIGHTS if scene.number is not None else SHAPE_WEIGHTS
        chosen = kind or rng.choices(list(weights), list(weights.values()))[0]
        try:
            templates, words, answer = KINDS[chosen](rng, scene, image or "the image")
        except _NotApplicable:
            if kind is not None:
                return None
            continue
        if image is not None:
            templates = [template for template in templates if "{image}" in template]
        name = image or rng.choice(SINGLE_IMAGE_NAMES)
        text = rng.choice(templates).format(image=name, **words)
        return Question(chosen, text, answer)


def ask_about_several(
    rng: random.Random, scenes: Sequence[Scene], kind: str | None = None
) -> Question | None:
    """Ask something about two or three pictures in one prompt, as `ask` does about one."""
    names = [f"the {ORDINALS[i]} image" for i in range(len(scenes))]
    both_numbers = all(scene.number is not None for scene in scenes)
    if len(scenes) == 2:
        weights = PAIR_NUMBER_WEIGHTS if both_numbers else PAIR_WEIGHTS
    else:
        weights = {"describe_both": 1.0, "one_of_two": 1.0}
    chosen = kind or rng.choices(list(weights), list(weights.values()))[0]
    first, second = scenes[:2]
    if chosen == "describe_both":
        templates = DESCRIBE_BOTH if len(scenes) == 2 else DESCRIBE_THREE
        text = templates[0] if rng.random() < 0.25 else rng.choice(templates)
        answer = " ".join(describe(scene, name) for scene, name in zip(scenes, names, strict=True))
        return Question(chosen, text, answer)
    if chosen == "more_shapes":
        a, b = len(first.shapes), len(second.shapes)
        verdict = f"the {ORDINALS[b > a]} image has more" if a != b else "they have the same number"
        answer = (
            f"The first image has {_count(a)} and the second image has {_count(b)}, so {verdict}."
        )
        return Question(chosen, rng.choice(MORE_SHAPES), answer)
    if chosen == "same_number":
        if first.number is None or second.number is None:
            return None if kind else ask_about_several(rng, scenes)
        a, b = first.number.text, second.number.text
        verdict = "the same" if a == b else "different"
        answer = f"The first image shows {a} and the second image shows {b}, so they are {verdict}."
        return Question(chosen, rng.choice(SAME_NUMBER), answer)
    i = rng.randrange(len(scenes))
    question = ask(rng, scenes[i], None, names[i])
    assert question is not None
    return Question(chosen, question.text, question.answer)


def chat(rng: random.Random) -> Question:
    """Say something that has no picture."""
    questions, answer = rng.choice(CHAT)
    return Question("chat", rng.choice(questions), answer)


def vary(rng: random.Random, text: str) -> str:
    """Write a question a little differently, as people do."""
    draw = rng.random()
    if draw < 0.06:
        return text.lower()
    if draw < 0.12:
        return text.rstrip("?.!")
    if draw < 0.16:
        return f"Please answer: {text}"
    if draw < 0.20:
        return f"{text} Answer in one sentence."
    if draw < 0.23:
        return f"Look at the image. {text}"
    if draw < 0.26:
        return text.replace("?", " ?")
    return text


assert len(COUNTS) > max(MAX_SHAPES, MAX_DIGITS)
