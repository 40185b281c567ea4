"""A small world of drawn scenes: one to three coloured shapes, and English sentences about them.

The models of this folder share it: each is trained on scenes that it draws, and measured on scenes that no training
ever saw. A scene is held out by its content (`is_held_out`), so that no drawing of it, and no wording of it, is trained
on. Everything is drawn with Pillow and random numbers from a seed; nothing is downloaded.
"""

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64
"""Pixels of a picture's side."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 7, "large": 12}
"""Half a shape's side in pixels."""
NUMBERS = {1: "one", 2: "two", 3: "three"}
BACKGROUND = (245, 245, 240)


@dataclass(frozen=True)
class Thing:
    """A coloured shape of some size."""

    size: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in a row from left to right, or two of them one above the other."""

    things: tuple[Thing, ...]
    layout: str  # "single", "row", "column"

    @property
    def key(self) -> str:
        """The scene without sizes: what a caption without sizes says."""
        return self.layout + ":" + "|".join(thing.name for thing in self.things)


def is_held_out(scene: Scene) -> bool:
    """About one scene of two or three things in eight; by content, the same in every run. Single things are few, and
    all of them are trained on."""
    if scene.layout == "single":
        return False
    return hashlib.sha256(scene.key.encode()).digest()[0] < 32


def random_scene(rng: random.Random) -> Scene:
    """Any scene. No two things of it have the same shape and colour, so that each can be named."""
    layout = rng.choices(["single", "row", "column"], [1, 3, 2])[0]
    count = 1 if layout == "single" else 2 if layout == "column" else rng.choice([2, 2, 3])
    things: list[Thing] = []
    while len(things) < count:
        thing = Thing(rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(SHAPES))
        if thing.name not in [other.name for other in things]:
            things.append(thing)
    return Scene(tuple(things), layout)


def scene_for(rng: random.Random, held_out: bool) -> Scene:
    """A scene of one of the two sets."""
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) == held_out:
            return scene


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as a picture of `SIZE` pixels a side; where exactly each thing stands is left to chance."""
    scale = 4
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), BACKGROUND)
    pencil = ImageDraw.Draw(picture)
    for thing, (x, y) in zip(scene.things, places(scene, rng)):
        half = SIZES[thing.size] if len(scene.things) < 3 else SIZES[thing.size] * 0.75
        corners = [scale * value for value in (x - half, y - half, x + half, y + half)]
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            pencil.ellipse(corners, fill=colour)
        elif thing.shape == "square":
            pencil.rectangle(corners, fill=colour)
        else:
            left, top, right, bottom = corners
            pencil.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=colour)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def places(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    """The middle of each thing, in pixels."""
    middle = SIZE / 2

    def about(value: float, spread: float) -> float:
        return value + rng.uniform(-spread, spread)

    if scene.layout == "single":
        return [(about(middle, 12), about(middle, 12))]
    if scene.layout == "column":
        return [(about(middle, 6), about(SIZE * step, 2)) for step in (0.26, 0.74)]
    steps = (0.26, 0.74) if len(scene.things) == 2 else (0.18, 0.5, 0.82)
    return [(about(SIZE * step, 1.5), about(middle, 6)) for step in steps]


def joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to say what the scene shows, with sizes or without."""
    sized = rng.random() < 0.4
    names = [f"a {thing.full_name if sized else thing.name}" for thing in scene.things]
    if scene.layout == "single":
        return names[0]
    if scene.layout == "column":
        upper, lower = names
        return rng.choice([f"{upper} above {lower}", f"{lower} below {upper}"])
    if len(names) == 2:
        left, right = names
        return rng.choice([f"{left} left of {right}", f"{right} right of {left}"])
    return rng.choice([joined(names), f"{joined(names)} in a row"])


def description(scene: Scene) -> str:
    """The one full sentence that a model is taught to describe a picture with."""
    names = [f"a {thing.full_name}" for thing in scene.things]
    if scene.layout == "column":
        said = f"{names[0]} above {names[1]}"
    elif len(names) == 2:
        said = f"{names[0]} left of {names[1]}"
    else:
        said = joined(names)
    return f"The picture shows {said}."


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Every question about the scene that has one right answer, with that answer."""
    count = len(scene.things)
    asked = [("How many shapes are there?", f"There {'is' if count == 1 else 'are'} {NUMBERS[count]}.")]
    shapes = [thing.shape for thing in scene.things]
    colours = [thing.colour for thing in scene.things]
    for thing in scene.things:
        if shapes.count(thing.shape) == 1:
            asked.append((f"What colour is the {thing.shape}?", f"The {thing.shape} is {thing.colour}."))
            asked.append((f"Is the {thing.shape} small or large?", f"The {thing.shape} is {thing.size}."))
        if colours.count(thing.colour) == 1:
            asked.append((f"What shape is {thing.colour}?", f"The {thing.shape} is {thing.colour}."))
    if count == 2:
        first, second = ("above", "below") if scene.layout == "column" else ("left of", "right of")
        here, there = (f"the {thing.name}" for thing in scene.things)
        asked.append((f"What is {first} {there}?", f"{here.capitalize()} is."))
        asked.append((f"What is {second} {here}?", f"{there.capitalize()} is."))
    return asked
