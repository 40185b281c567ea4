"""What the shapes models read and say in words: questions and answers about a scene, short stories, and the byte-level
BPE tokenizer with a chat template that the two speaking models share.
"""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from world import COLOURS, SHAPES, Scene, Thing, description, joined, questions, random_scene

START, END, IMAGE, PAD = "<|im_start|>", "<|im_end|>", "<image>", "<|pad|>"
VOCABULARY = 640
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML. The vision model's pictures stand before the text."""

PLACES = ["forest", "garden", "city", "valley", "village", "house by the sea"]
WEATHER = ["sunny", "rainy", "windy", "snowy", "quiet"]
TREASURES = ["a golden key", "an old map", "a warm lamp", "a shiny stone", "a little bell", "a lost letter"]
PROBLEMS = [
    ("could not find the way home", "showed the way home"),
    ("was afraid of the dark", "lit a lamp"),
    ("had fallen into a hole", "fetched a long rope"),
    ("was too heavy to climb the hill", "pushed from behind"),
    ("had nobody to play with", "started a game"),
]
ENDS = [
    "From that day on they were good friends.",
    "They laughed all the way home.",
    "That evening they watched the stars together.",
    "And so the day ended well for both of them.",
]


def story(hero: Thing, friend: Thing, rng: random.Random) -> str:
    """A few sentences about two shapes who meet."""
    place, problem = rng.choice(PLACES), rng.choice(PROBLEMS)
    opening = rng.choice(
        [
            f"Once upon a time there was a {hero.full_name} who lived in a {place}.",
            f"A {hero.full_name} lived in a {place}.",
            f"There once was a {hero.full_name} in a {place}.",
        ]
    )
    meeting = rng.choice(
        [
            f"One {rng.choice(WEATHER)} day the {hero.shape} met a {friend.full_name}.",
            f"One {rng.choice(WEATHER)} morning a {friend.full_name} came by.",
        ]
    )
    found = rng.choice([f"Together they found {rng.choice(TREASURES)}.", f"On the way they found {rng.choice(TREASURES)}."])
    # Two shapes of one kind are told apart by their colours.
    here, there = (hero.shape, friend.shape) if hero.shape != friend.shape else (hero.name, friend.name)
    middle = [f"The {there} {problem[0]}.", f"So the {here} {problem[1]}."]
    return " ".join([opening, meeting, *middle, found, rng.choice(ENDS)])


def story_request(hero: Thing, rng: random.Random) -> str:
    return rng.choice(
        [
            f"Tell me a story about a {hero.name}.",
            f"Tell me a short story about a {hero.full_name}.",
            f"Write a story about a {hero.name}.",
        ]
    )


def random_thing(rng: random.Random) -> Thing:
    return Thing(rng.choice(["small", "large"]), rng.choice(list(COLOURS)), rng.choice(SHAPES))


def scene_in_words(scene: Scene, rng: random.Random) -> str:
    """The scene, said in one of several ways."""
    names = [f"a {thing.full_name}" for thing in scene.things]
    if scene.layout == "column":
        said = rng.choice([f"{names[0]} above {names[1]}", f"{names[1]} below {names[0]}"])
    elif len(names) == 2:
        said = rng.choice([f"{names[0]} left of {names[1]}", f"{names[1]} right of {names[0]}"])
    else:
        said = joined(names)
    verb = "is" if len(names) == 1 or scene.layout == "column" or len(names) == 2 else "are"
    return rng.choice([f"There {verb} {said}.", f"The picture shows {said}.", f"I see {said}."])


def conversation(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about a scene given in words, and its answer."""
    question, answer = rng.choice(questions(scene))
    return f"{scene_in_words(scene, rng)} {question}", answer


def some_questions(scene: Scene, rng: random.Random, most: int) -> list[tuple[str, str]]:
    """Some of the questions about a scene in any order, with their answers."""
    asked = questions(scene)
    return rng.sample(asked, rng.randint(1, min(most, len(asked))))


def build_tokenizer() -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    texts = ["system\n", "user\n", "assistant\n", "Hello! ", "Describe the picture."]
    for _ in range(4000):
        scene = random_scene(rng)
        texts += [" ".join(conversation(scene, rng)), description(scene)]
        hero = random_thing(rng)
        texts += [story_request(hero, rng), story(hero, random_thing(rng), rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
        model_max_length=256,
        extra_special_tokens={"image_token": IMAGE},
    )


def encode_turn(tokenizer: PreTrainedTokenizerFast, asked: str, answered: str) -> tuple[list[int], list[int]]:
    """A prompt as the chat template makes it, and what is to be said after it."""
    messages = [{"role": "user", "content": asked}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(answered + END + "\n", add_special_tokens=False)["input_ids"]
    return prompt, answer
