"""Writes the held-out data that the shapes models are measured on: pictures, captions, questions and prompts of scenes
that no training ever saw (`world.is_held_out`), and the forms that a grammatical sentence of a story can have.

`python held_out.py` makes `held_out/` anew, the same files each time. `cargo run --release --example measure` reads it.
"""

import json
import random
import re
from pathlib import Path

from speech import conversation, random_thing, story, story_request
from world import COLOURS, SHAPES, SIZES, Scene, caption, description, draw, questions, scene_for

FOLDER = Path(__file__).parent / "held_out"
GROUP = 20
"""Pictures among which a text has to find its own."""
GROUPS = 8
CHATS = 200
PROMPTS = 50
STORIES = 30


def different_scenes(rng: random.Random, count: int) -> list[Scene]:
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = scene_for(rng, held_out=True)
        scenes.setdefault(scene.key, scene)
    return list(scenes.values())


def picture(scene: Scene, number: int, rng: random.Random) -> dict:
    name = f"{number:03}.png"
    draw(scene, rng).save(FOLDER / name, optimize=True)
    asked = dict(questions(scene))
    chosen = ["How many shapes are there?", *[question for question in asked if question.startswith("What colour")]]
    return {
        "file": name,
        "caption": caption(scene, rng),
        "questions": [[question, asked[question]] for question in chosen],
        "description": description(scene),
    }


def without_names(sentence: str) -> str:
    """A sentence with each thing in it replaced by one word, so that sentences about different things are one form."""
    sizes, colours, shapes = ("|".join(words) for words in (SIZES, COLOURS, SHAPES))
    return re.sub(rf"(?:(?:{sizes}) )?(?:(?:{colours}) )?(?:{shapes})", "THING", sentence)


def story_forms(rng: random.Random) -> list[str]:
    stories = (story(random_thing(rng), random_thing(rng), rng) for _ in range(20000))
    sentences = (sentence.strip() for text in stories for sentence in re.findall(r"[^.]+\.", text))
    return sorted({without_names(sentence) for sentence in sentences})


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    rng = random.Random(7)
    scenes = [scene for _ in range(GROUPS) for scene in different_scenes(rng, GROUP)]
    data = {
        "group": GROUP,
        "pictures": [picture(scene, number, rng) for number, scene in enumerate(scenes)],
        "chats": [conversation(scene_for(rng, held_out=True), rng) for _ in range(CHATS)],
        "prompts": [caption(scene, rng) for scene in different_scenes(rng, PROMPTS)],
        "stories": [story_request(random_thing(rng), rng) for _ in range(STORIES)],
        "story_forms": story_forms(rng),
    }
    (FOLDER / "held_out.json").write_text(json.dumps(data, indent=1) + "\n")
    print({name: len(part) for name, part in data.items() if name != "group"})


if __name__ == "__main__":
    main()
