"""The server as OpenAI's own Python client uses it: `python sdk.py PROGRAM`, with the package `openai` at hand. Starts the
program with the small models, asks for everything that the README lists, and ends it by a signal.
"""

import base64
import math
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import typing
import zlib

import openai
import pydantic

KEY = "secret"
MODELS = pathlib.Path(__file__).resolve().parents[3] / "models"
QUESTION = "There is a small red circle left of a large blue square. What is left of the blue square?"


def asked(question):
    return [{"role": "user", "content": question}]


def refused(kind, status, call, **fields):
    """The call fails with this class of the client's errors."""
    try:
        call(**fields)
    except kind as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"{fields} was not refused")


def models(client):
    names = {model.id: model for model in client.models.list()}
    assert list(names) == ["english", "caller", "chat", "describer", "painter"], names
    assert client.models.retrieve("chat").capability == "text_to_text"


def embeddings(client):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The bus was late again."]
    # The client asks for base64 and decodes it.
    vectors = [item.embedding for item in client.embeddings.create(model="english", input=texts).data]
    plain = client.embeddings.create(model="english", input=texts, encoding_format="float")
    assert plain.usage.total_tokens == plain.usage.prompt_tokens > 15, plain.usage
    for vector, item in zip(vectors, plain.data):
        assert all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(vector, item.embedding, strict=True))
    near, far = (sum(x * y for x, y in zip(vectors[0], vectors[index])) for index in (1, 2))
    assert near > far + 0.2, (near, far)
    short = client.embeddings.create(model="english", input="It rains.", dimensions=64)
    assert len(short.data[0].embedding) == 64
    print(f"embeddings: a cat to a kitten {near:.2f}, to a bus {far:.2f}")


def chats(client):
    create = client.chat.completions.create
    whole = create(model="chat", messages=asked(QUESTION), temperature=0, max_completion_tokens=50, user="somebody")
    text = whole.choices[0].message.content
    assert text.strip() == "The red circle is.", text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 10
    pieces, usage = [], None
    for chunk in create(
        model="chat", messages=asked(QUESTION), temperature=0, stream=True, stream_options={"include_usage": True}
    ):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == text and usage == whole.usage
    cut = create(model="chat", messages=asked("Tell me a short story about a small red circle."), max_tokens=5, seed=1)
    assert cut.choices[0].finish_reason == "length"
    stopped = create(model="chat", messages=asked(QUESTION), temperature=0, stop=[" circle"])
    assert stopped.choices[0].message.content.strip() == "The red"
    several = create(model="chat", messages=asked("Tell me a short story about a small red circle."), n=2, seed=1)
    assert len({choice.message.content for choice in several.choices}) == 2
    told = create(model="chat", messages=asked(QUESTION), temperature=0, logprobs=True, top_logprobs=2)
    tokens = told.choices[0].logprobs.content
    assert len(tokens) == told.usage.completion_tokens and "".join(token.token for token in tokens).startswith(text)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in tokens)
    # What an answer is goes back into the conversation as it is.
    again = [*asked(QUESTION), whole.choices[0].message.model_dump(), *asked("Thank you.")]
    assert create(model="chat", messages=again, max_tokens=5).choices
    with client.chat.completions.stream(model="chat", messages=asked(QUESTION), temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    print(f"chat: {text.strip()!r} in {len(pieces)} pieces, {usage.total_tokens} tokens")


def caller():
    """A folder with the small chat model, whose template takes tools and knows of thoughts."""
    folder = pathlib.Path(tempfile.mkdtemp())
    for file in (MODELS / "shapes-chat").iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(
        '{# <tool_call> {"name": x, "arguments": y} </tool_call> <think> </think> {{ tools }} #}'
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
        "{% if enable_thinking %}<think>\n{% endif %}"
    )
    return folder


class Shape(pydantic.BaseModel):
    colour: typing.Literal["red", "blue"]
    sides: typing.Annotated[int, pydantic.Field(ge=3, le=6)]


def structured(client):
    shape = client.chat.completions.parse(model="chat", messages=asked(QUESTION), response_format=Shape, temperature=0)
    assert shape.choices[0].message.parsed.sides in range(3, 7), shape
    tools = [openai.pydantic_function_tool(Shape, name="describe")]
    fields = {"model": "caller", "messages": asked(QUESTION), "tools": tools, "tool_choice": "required", "temperature": 0}
    called = client.chat.completions.parse(**fields, parallel_tool_calls=False).choices[0]
    call = called.message.tool_calls[0]
    assert called.finish_reason == "tool_calls" and isinstance(call.function.parsed_arguments, Shape), called
    result = {"role": "tool", "tool_call_id": call.id, "content": "A circle."}
    again = [*asked(QUESTION), called.message.model_dump(exclude={"parsed"}, exclude_none=True), result]
    for item in again[1]["tool_calls"]:
        item["function"].pop("parsed_arguments")
    assert client.chat.completions.create(model="caller", messages=again, tools=tools, tool_choice="none", max_tokens=3).choices
    with client.chat.completions.stream(**fields, parallel_tool_calls=False) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments, streamed
    extra = {"chat_template_kwargs": {"enable_thinking": True}}
    thinks = client.chat.completions.create(model="caller", messages=asked(QUESTION), max_tokens=5, extra_body=extra)
    assert thinks.choices[0].message.reasoning_content, thinks
    several = client.chat.completions.create(model="chat", messages=asked(QUESTION), n=2, temperature=0, max_tokens=3)
    assert len(several.choices) == 2 and several.usage.completion_tokens == 6, several
    refused(openai.BadRequestError, 400, client.chat.completions.create, **{**fields, "model": "chat"})
    print(f"structured: {shape.choices[0].message.parsed!r}, called with {call.function.arguments}")


def vision(client):
    picture = base64.b64encode((MODELS / "shapes/held_out/000.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "What colour is the triangle?"},
    ]
    answer = client.chat.completions.create(model="describer", messages=asked(content), temperature=0)
    assert answer.choices[0].message.content.strip() == "The triangle is red.", answer
    print(f"vision: {answer.choices[0].message.content.strip()!r}")
    talk = [*asked(content), {"role": "assistant", "content": "The triangle is red."}, *asked(content[::-1])]
    again = client.chat.completions.create(model="describer", messages=talk, temperature=0, max_tokens=8)
    assert again.usage.prompt_tokens > 2 * answer.usage.prompt_tokens, again


def completions(client):
    story = client.completions.create(model="chat", prompt="Once upon a time there was a", temperature=0, max_tokens=8)
    pieces = client.completions.create(
        model="chat", prompt="Once upon a time there was a", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == story.choices[0].text
    print(f"completions: {story.choices[0].text!r}")


def images(client):
    prompt = "a yellow square left of a green circle"
    whole = client.images.generate(model="painter", prompt=prompt, n=2, extra_body={"seed": 1, "steps": 4})
    files = [base64.b64decode(image.b64_json) for image in whole.data]
    assert len(files) == 2 and all(file.startswith(b"\x89PNG") for file in files)
    told = []
    for event in client.images.generate(
        model="painter", prompt=prompt, stream=True, partial_images=2, extra_body={"seed": 1, "steps": 4}
    ):
        told.append(event.type.removeprefix("image_generation."))
        last = base64.b64decode(event.b64_json)
    assert told == ["partial_image", "partial_image", "completed"] and last == files[0], told
    print(f"images: {len(files[0])} bytes of PNG, streamed as {', '.join(told)}")


def edits(client):
    picture = (MODELS / "shapes/held_out/000.png").read_bytes()
    side = 64
    rows = b"".join(b"\0" + bytes([0, 0, 0, 255] * (side // 2) + [0, 0, 0, 0] * (side // 2)) for _ in range(side))
    mask = png(side, rows)
    fields = {"model": "painter", "prompt": "a green circle right of a red triangle", "extra_body": {"seed": 1, "steps": 4}}
    whole = client.images.edit(image=("a.png", picture), mask=("mask.png", mask), size="64x64", n=2, **fields)
    files = [base64.b64decode(image.b64_json) for image in whole.data]
    assert len(files) == 2 and files[0] != files[1] and all(file.startswith(b"\x89PNG") for file in files)
    events = client.images.edit(image=[("a.png", picture)], mask=("mask.png", mask), stream=True, partial_images=1, **fields)
    told = [(event.type.removeprefix("image_edit."), base64.b64decode(event.b64_json)) for event in events]
    assert [kind for kind, _ in told] == ["partial_image", "completed"] and told[-1][1] == files[0]
    anew = client.images.edit(image=picture, **fields)
    assert base64.b64decode(anew.data[0].b64_json) != files[0]
    refused(openai.BadRequestError, 400, client.images.edit, image=picture, mask=("mask.png", b"no picture"), **fields)
    print(f"edits: {len(files[0])} bytes of PNG, streamed as {', '.join(kind for kind, _ in told)}")


def png(side, rows):
    """A PNG file of colours with transparency."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def errors(client):
    create = client.chat.completions.create
    error = refused(openai.BadRequestError, 400, create, model="chat", messages=asked("Hi"), logit_bias={"5": 200})
    assert error.param == "logit_bias" and "logit_bias" in error.message, error
    refused(openai.NotFoundError, 404, create, model="nothing", messages=asked("Hi"))
    refused(openai.BadRequestError, 400, create, model="chat", messages=asked("word " * 3000))
    stranger = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, 401, stranger.models.list)
    print("errors: 400 by name, 401, 404, and 400 for a prompt that is too long")


def main():
    folder = caller()
    small = {"text-embedding": {"english": "english-embedding-small"}, "text-to-text": {"chat": "shapes-chat", "caller": folder}}
    small |= {"vision": {"describer": "shapes-vision"}, "text-to-image": {"painter": "shapes-text-to-image"}}
    models_of = [[f"--{kind}", f"{name}={MODELS / path}"] for kind, named in small.items() for name, path in named.items()]
    program = subprocess.Popen(
        [sys.argv[1], "--listen", "127.0.0.1:0", "--log", "warn", *sum(models_of, [])],
        env={**os.environ, "SERVE_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.fullmatch("listening on (.*)\n", program.stdout.readline())[1]
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=300)
        for part in [models, embeddings, chats, structured, vision, completions, images, edits, errors]:
            part(client)
        client.close()
        program.send_signal(signal.SIGTERM)
        words = program.communicate(timeout=60)[0].strip()
        assert program.returncode == 0 and " 0 requests were cut off" in words, words
        print(words)
    finally:
        program.kill()
        shutil.rmtree(folder)


main()
