"""Prepares the training text: one English text a line.

Sources, each given as an argument and each obtainable again as a Debian package:

* WordNet's `data.*` files (package `wordnet-base`): definitions, example
  sentences, words, and the example frames of verbs;
* Jane Austen's novels (package `r-cran-janeaustenr`, its `Rdata.rdb`), in the
  public domain;
* short everyday sentences put together here from patterns and WordNet's most
  used words, because the first two say little about bus stops and breakfast.

Lines that occur in a file given with `--exclude` are left out.
"""

import argparse
import json
import random
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

POS_FILES = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
LEX = {5: "animal", 6: "thing", 13: "food", 15: "place", 18: "person", 4: "activity", 9: "idea"}

PEOPLE = """I;We;You;They;My sister;My brother;Our neighbour;The teacher;The doctor;My boss;
A friend of mine;The children;Her mother;His father;The manager;Two students;An old man;
The young woman;My grandmother;The whole family;Our guests;The driver;Everybody;Nobody;
Some people;The police;The company;The nurse;My cousin;The customer""".replace("\n", "").split(";")

PAST = """bought a new {thing};lost the {thing};forgot to bring the {thing};ate {food} for dinner;
cooked {food} for everyone;saw a {animal} in the garden;talked to the {person};
waited for the {person};went to the {place};came back from the {place};moved to {place};
called the {person} twice;missed the last bus;took the early train;cancelled the meeting;
paid the bill by card;sent an email to the {person};was late for work;fell asleep on the sofa;
cleaned the kitchen;repaired the {thing};broke the {thing};sold the old {thing};
asked for some {food};fed the {animal};watched a film about a {animal};read a book about {idea};
learned a lot about {idea};did not like the {food};was afraid of the {animal};
found a {thing} under the bed;walked the dog in the park;played football after school;
studied for the exam;passed the driving test;failed the maths exam;got married in June;
had a baby;booked a flight to {place};stayed in a cheap hotel;enjoyed the {activity};
complained about the noise;felt ill and stayed at home;broke an arm;washed the car;
lost money on the deal;won the match;started a small business;quit the job;hired a {person};
turned off the light;locked the door;closed the window;opened a bank account;
wrote a long letter to the {person};laughed at the joke;cried at the end of the film;
ran five kilometres;went swimming in the lake;planted trees behind the house;
painted the walls white;listened to music;played the guitar;downloaded the file;
deleted the photos by mistake;restarted the computer;forgot the password;
spent too much money;saved some money for a holiday;borrowed a {thing};returned the {thing};
hates {food};loves {food};is allergic to {food};is looking for a {person};needs a {thing};
wants to be a {person};works as a {person};lives near the {place};is tired of {activity};
is learning to cook;is very interested in {idea};is good at {activity};has never seen a {animal};
is {adj};was {adj} about it;seemed rather {adj};has a {adj} {thing};met a {adj} {person}"""
PAST = PAST.replace("\n", "").split(";")

WHEN = [""] * 6 + """ yesterday; this morning; last night; on Sunday; last week; two days ago;
 in the evening; again; before lunch; on the way home; in the summer; every day; a year ago;
 because it was raining; and then went home; without saying a word; for the first time;
 after work; at the weekend; during the holidays; in spite of the cold""".replace("\n", "").split(";")

OTHER = """Where can I buy a {thing}?;How much does the {thing} cost?;Do you have any {food}?;
How do I get to the {place}?;How far is it to {place}?;What time does the {place} open?;
Can you help me with the {thing}?;How do I clean a {thing}?;How long does it take to cook {food}?;
What is the best way to learn about {idea}?;What does {adj} mean?;Is {food} good for your health?;
Why is the {animal} so {adj}?;Could you please call the {person}?;Have you ever seen a {animal}?;
Who is the {person} over there?;What is the difference between a {thing} and a {thing}?;
The {thing} is {adj}.;The {thing} does not work.;This {food} tastes {adj}.;The {food} is too expensive.;
The {animal} is sleeping.;The {animal} ran away.;A {animal} is a {adj} animal.;There is a {thing} on the table.;
I would like some {food}, please.;Please put the {thing} in the bag.;Please do not touch the {thing}.;
The weather in {place} is {adj}.;It is going to rain in {place} tomorrow.;It was a very {adj} day.;
The {person} said that the {thing} was {adj}.;The {person} is a {adj} person.;My {thing} was stolen.;
{food} with {food};{adj} {food};{adj} {thing};{adj} {person};{thing} for a {person};a recipe for {food};
how to {verb};the {person} and the {animal};{activity} in {place};news about {idea};a book on {idea};
They decided to {verb}.;She wants to {verb}.;Do you want to {verb}?;You must not {verb} here.;
He did not {verb} in time.;It is difficult to {verb}.;We tried to {verb}, but it was too late.;
{idea} is more important than {idea}.;I do not believe in {idea}.;What do you think about {idea}?;
The {place} is full of people.;We are meeting at the {place} at {hour} o'clock.;
The shop closes at {hour} in the evening.;There were {hour} {person}s in the room.;
The new {thing} costs {hour} dollars.;The price of {food} has gone up.;
Stop the {activity}!;The {activity} starts at {hour}.;The {activity} was {adj}.;I am bored with {activity}.;
The government wants to reduce {idea}.;Scientists study the {animal}.;The {person} was arrested.;
The patient needs a {thing}.;The software update changed the {thing}.;Error: cannot open the {thing}.;
How can I {verb} faster?;Thank you for the {thing}.;Sorry, I broke your {thing}.;Happy birthday, dear {person}!;
The {person} took a photo of the {animal}.;I dreamt of a {adj} {animal}.;Our team lost the {activity}."""
OTHER = OTHER.replace("\n", "").split(";")


def glosses(folder: Path) -> Iterator[tuple[list[str], str, list[str]]]:
    """Yields the words, the definition and the quoted examples of every synset."""
    for pos in POS_FILES:
        for line in (folder / f"data.{pos}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            words = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            examples = re.findall(r'"([^"]{8,})"', gloss)
            definition = re.sub(r'\s*;?\s*"[^"]*"', "", gloss).strip(" ;")
            yield words, definition, examples


def common_words(folder: Path) -> dict[str, list[str]]:
    """The most used single words of each kind that the patterns need."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
        key, sense, count = line.split()
        lemma, code = key.split("%")
        pos, lexfile = code.split(":")[:2]
        kind = {"1": LEX.get(int(lexfile)), "2": "verb", "3": "adj", "5": "adj"}.get(pos)
        if kind and lemma.isalpha() and len(lemma) > 2 and int(sense) <= 2:
            found[kind][lemma] = found[kind].get(lemma, 0) + int(count)
    limits = {"verb": 700, "adj": 700, "person": 300, "thing": 700, "food": 200, "animal": 120}
    return {
        kind: sorted(words, key=lambda w: -words[w])[: limits.get(kind, 300)]
        for kind, words in sorted(found.items())
    }


def fill(pattern: str, words: dict[str, list[str]], rng: random.Random) -> str:
    """Replaces every {kind} of a pattern by a word of that kind, the frequent ones more often."""
    def pick(match: re.Match[str]) -> str:
        if match[1] == "hour":
            return str(rng.randint(2, 12))
        choices = words[match[1]]
        return choices[int(len(choices) * rng.random() ** 1.4)]

    text = re.sub(r"\{(\w+)\}", pick, pattern)
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def everyday(words: dict[str, list[str]], count: int, rng: random.Random) -> Iterator[str]:
    """Short everyday sentences, questions, requests and noun phrases."""
    for _ in range(count):
        if rng.random() < 0.5:
            yield fill(f"{rng.choice(PEOPLE)} {rng.choice(PAST)}{rng.choice(WHEN)}.", words, rng)
        else:
            yield fill(rng.choice(OTHER), words, rng)


def verb_frames(folder: Path) -> Iterator[str]:
    """WordNet's example sentences for verbs."""
    frames = dict(
        line.rstrip().split(" ", 1)
        for line in (folder / "sents.vrb").read_text(encoding="latin-1").splitlines()
    )
    for line in (folder / "sentidx.vrb").read_text(encoding="latin-1").splitlines():
        key, *numbers = line.split()
        verb = key.split("%")[0].replace("_", " ")
        for number in ",".join(numbers).split(",")[:2]:
            if number in frames:
                yield frames[number].replace("%s", verb) + "."


def novels(rdb: Path) -> Iterator[str]:
    """The sentences of each novel in an R data file: zlib chunks of length-prefixed strings."""
    data, start = rdb.read_bytes(), 0
    while start < len(data):
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(data[start + 4 :])
        start = len(data) - len(unpacker.unused_data)
        lines, at = [], 0
        while (at := raw.find(b"\x00\x04\x00\x09", at)) >= 0:
            (length,) = struct.unpack(">i", raw[at + 4 : at + 8])
            lines.append(raw[at + 8 : at + 8 + max(length, 0)].decode("utf-8", "replace"))
            at += 8 + max(length, 0)
        for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
            text = " ".join(paragraph.split()).replace("_", "").replace("--", " - ")
            yield from re.split(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])", text)


def join_some(texts: list[str], count: int, rng: random.Random) -> Iterator[str]:
    """Runs of two to eight neighbouring texts, so that long inputs are seen too."""
    for _ in range(count):
        at = rng.randrange(len(texts) - 8)
        yield " ".join(texts[at : at + rng.randint(2, 8)])


def clean(text: str) -> str:
    """One line without surrounding space."""
    return " ".join(text.split())


def collect(args: argparse.Namespace) -> list[str]:
    rng = random.Random(args.seed)
    synsets = list(glosses(args.wordnet))
    common = common_words(args.wordnet)
    definitions = [d for _, d, _ in synsets]
    examples = [e for _, _, es in synsets for e in es]
    named = [f"{w[0]}: {d}" for w, d, _ in synsets]
    lemmas = [w for ws, _, _ in synsets for w in ws]
    prose = [s for s in novels(args.novels) if 12 <= len(s) <= 600]
    texts = [w for ws in common.values() for w in ws]
    texts += examples + rng.sample(definitions, args.definitions) + rng.sample(named, args.definitions // 4)
    texts += rng.sample(lemmas, args.words) + list(verb_frames(args.wordnet))
    texts += rng.sample(prose, min(args.prose, len(prose)))
    texts += everyday(common, args.everyday, rng)
    texts += list(join_some(prose, args.joined, rng)) + list(join_some(examples, args.joined, rng))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with WordNet's data.* files")
    parser.add_argument("--novels", type=Path, required=True, help="Rdata.rdb of janeaustenr")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="held-out texts")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--definitions", type=int, default=50_000)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--prose", type=int, default=25_000)
    parser.add_argument("--everyday", type=int, default=50_000)
    parser.add_argument("--joined", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    held_out = set()
    for path in args.exclude:
        text = path.read_text(encoding="utf-8")
        lines = sum(json.loads(text), []) if path.suffix == ".json" else text.splitlines()
        held_out.update(clean(line).lower() for line in lines)
    texts = list(dict.fromkeys(clean(t) for t in collect(args)))
    texts = [t for t in texts if t and t.lower() not in held_out]
    random.Random(args.seed).shuffle(texts)
    args.output.write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(f"{len(texts)} texts, {sum(len(t.split()) for t in texts)} words")


if __name__ == "__main__":
    main()
