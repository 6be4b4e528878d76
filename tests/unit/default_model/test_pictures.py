"""Pictures and questions of the default model: reproducible, right, and split without overlap."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "default_model"))

import pictures
import questions

FONTS = (pictures.BUILTIN_FONT,)  # the others need packages that only training needs


def make_scene(seed: int, *, held_out: bool = False, number_share: float = 0.4) -> pictures.Scene:
    rng = random.Random(seed)
    return pictures.random_scene(
        rng, 112, 112, held_out=held_out, number_share=number_share, fonts=FONTS
    )


def is_held_out(scene: pictures.Scene) -> list[bool]:
    items = [pictures.is_held_out_shape(s.colour, s.name, s.place) for s in scene.shapes]
    if scene.number is not None:
        items.append(pictures.is_held_out_number(scene.number.text, scene.number.colour))
    return items


def test_same_seed_draws_same_pixels():
    for seed in range(20):
        first = pictures.draw_scene(make_scene(seed), 112, 112)
        second = pictures.draw_scene(make_scene(seed), 112, 112)
        assert first.tobytes() == second.tobytes()


def test_training_scenes_have_no_held_out_item():
    assert not any(any(is_held_out(make_scene(seed))) for seed in range(400))


def test_evaluation_scenes_have_only_held_out_items():
    for seed in range(400):
        items = is_held_out(make_scene(seed, held_out=True))
        assert items
        assert all(items)


def test_every_colour_shape_and_place_is_on_both_sides_of_the_hold_out():
    combinations = [
        (colour, name, place)
        for colour in pictures.COLOURS
        for name in pictures.SHAPES
        for place in range(len(pictures.PLACES))
    ]
    for held_out in (False, True):
        side = [c for c in combinations if pictures.is_held_out_shape(*c) == held_out]
        assert {c[0] for c in side} == set(pictures.COLOURS)
        assert {c[1] for c in side} == set(pictures.SHAPES)
        assert {c[2] for c in side} == set(range(len(pictures.PLACES)))


def test_a_shape_is_drawn_in_its_colour_at_its_place():
    for seed in range(40):
        scene = make_scene(seed, number_share=0.0)
        image = pictures.draw_scene(scene, 240, 180)
        for shape in scene.shapes:
            pixel = image.getpixel((round(shape.x * 240), round(shape.y * 180)))
            assert pixel == shape.rgb
            assert (int(shape.y * 3), int(shape.x * 3)) == divmod(shape.place, 3)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_every_kind_of_question_can_be_asked(kind: str):
    rng = random.Random(kind)
    asked = [questions.ask(rng, make_scene(seed), kind) for seed in range(40)]
    assert any(question is not None for question in asked)


def test_a_description_names_everything_in_the_scene():
    for seed in range(100):
        scene = make_scene(seed)
        sentence = questions.describe(scene)
        assert scene.background in sentence
        for shape in scene.shapes:
            assert f"{shape.colour} {shape.name} {pictures.PLACES[shape.place]}" in sentence
        if scene.number is not None:
            assert f"number {scene.number.text} in {scene.number.colour}" in sentence


def test_counts_and_colours_and_places_follow_from_the_scene():
    rng = random.Random(0)
    for seed in range(200):
        scene = make_scene(seed, number_share=0.0)
        names = [shape.name for shape in scene.shapes]
        count = questions.ask(rng, scene, "count")
        assert count is not None
        assert f" {questions.COUNTS[len(names)]} shape" in count.answer
        colour = questions.ask(rng, scene, "colour")
        for shape in scene.shapes:
            if colour is not None and f"The {shape.name} is" in colour.answer:
                assert colour.answer == f"The {shape.name} is {shape.colour}."
                assert names.count(shape.name) == 1
        exists = questions.ask(rng, scene, "exists")
        if exists is not None and exists.answer.startswith("Yes"):
            assert any(name in exists.answer for name in names)


def test_a_count_of_some_shapes_follows_from_what_the_answer_lists():
    rng = random.Random(0)
    for seed in range(200):
        scene = make_scene(seed, number_share=0.0)
        question = questions.ask(rng, scene, "count_some")
        if question is None:
            assert not scene.shapes
            continue
        *listed, count = question.answer.removesuffix(".").split(", so there ")
        # The words for it in "There is no red shape in the image" or "are two crosses".
        thing = count.split(" ")[2:] if listed else count.split(" ")[3:]
        is_asked = [
            thing[0] in (shape.colour, shape.name, f"{shape.name}s", f"{shape.name}es")
            for shape in scene.shapes
        ]
        if listed:
            assert count.split(" ")[1] == questions.COUNTS[sum(is_asked)]
        else:
            assert sum(is_asked) == 0
        for shape, is_listed in zip(scene.shapes, is_asked, strict=True):
            place = f"{shape.colour} {shape.name} {pictures.PLACES[shape.place]}"
            assert (place in "".join(listed)) == is_listed


def test_which_image_has_more_shapes_follows_from_both_scenes():
    rng = random.Random(0)
    for seed in range(0, 200, 2):
        scenes = [make_scene(seed), make_scene(seed + 1)]
        question = questions.ask_about_several(rng, scenes, "more_shapes")
        assert question is not None
        first, second = (len(scene.shapes) for scene in scenes)
        expected = "they have the same number"
        if first != second:
            expected = f"the {'first' if first > second else 'second'} image has more"
        assert question.answer.endswith(f"so {expected}.")


def test_the_requests_of_the_readme_are_among_the_training_questions():
    asked = {*questions.DESCRIBE, *questions.DESCRIBE_BOTH}
    assert "What’s in this image?" in asked
    assert "What is in this image?" in asked
    assert any(text.startswith("I have two very different images.") for text in asked)
