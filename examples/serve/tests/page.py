"""The server's page as a person uses it: `python page.py PROGRAM [PICTURE]`. Starts the program with the small models, opens the
page in Chromium without a window, chats, searches and paints on it, and keeps what it looks like as a PNG file. Needs
`chromium` and `chromedriver`, and nothing else: the driver speaks JSON over HTTP (W3C WebDriver).
"""

import base64
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

KEY = "secret"
PATIENCE = 120
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
MAX_PICTURE_BYTES = 300 << 10


class Browser:
    """A session of the driver."""

    def __init__(self, driver, browser):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        try:
            self.begin(browser)
        except BaseException:
            self.driver.kill()
            raise

    def begin(self, browser):
        self.until_it_listens()
        self.base += "/session"
        options = {"binary": browser, "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.post("", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/{session['sessionId']}"
        self.post("/window/rect", {"width": 1200, "height": 1000})

    def until_it_listens(self):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.send("GET", "/status")
            except OSError:
                assert time.monotonic() < end and self.driver.poll() is None, "the driver does not start"
                time.sleep(0.05)

    def send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def post(self, path, body):
        return self.send("POST", path, body)

    def run(self, script):
        """The value of an expression in the page."""
        return self.post("/execute/sync", {"script": f"return {script}", "args": []})

    def until(self, script, what):
        """The value of an expression, once it is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        page = self.run("document.body.innerText")
        raise AssertionError(f"{what} did not come; the page says:\n{page}")

    def element(self, selector):
        found = self.post("/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def write(self, selector, text):
        element = self.element(selector)
        self.post(f"{element}/clear", {})
        self.post(f"{element}/value", {"text": text})

    def click(self, selector):
        self.post(f"{self.element(selector)}/click", {})

    def end(self):
        try:
            self.send("DELETE", "")
        finally:
            self.driver.kill()
            self.driver.wait()


def text(selector):
    return f"document.querySelector({selector!r}).innerText"


def the_key(page, address):
    page.post("/url", {"url": address})
    page.until(f"{text('#connection')}.includes('key')", "the demand for the key")
    assert page.run(text("#tree")) == ""
    # The key is taken when the field is left.
    page.write("#key", KEY + "\ue004")
    page.until(f"{text('#connection')} === 'live'", "the feed")


def the_tree(page):
    tree = page.until(f"{text('#tree')}.includes('text_to_image') && {text('#tree')}", "the tree")
    assert {"text_embedding", "text_to_text", "image_embedding", "vision", "text_to_image"} <= set(tree.split()), tree
    assert re.search(r"host: [\d.]+ MiB of [\d.]+ MiB, pressure", page.run(text("#memory")))
    names = page.run("[...document.querySelectorAll('select')].map(one => one.innerText.trim())")
    assert names == ["chat", "english", "painter"], names


def a_chat(page):
    page.click("#chat button")
    said = page.until(f"{text('#talk')}.includes('is.') && {text('#talk')}", "the answer")
    assert said.endswith("The red circle is."), said
    page.write("#say", "Tell me a short story about a small red circle.")
    page.click("#chat button")
    page.until("!document.querySelector('#chat button').disabled", "the end of the story")
    story = page.run(text("#talk")).split("\n")[-1]
    assert len(story) > 40, story
    print(f"chat: {story!r}")


def a_search(page):
    page.click("#search button")
    page.until("document.querySelectorAll('#found div').length === 4", "the ranking")
    ranking = page.run(text("#found")).split("\n")
    assert "The cat is sleeping on the sofa." in ranking[0], ranking
    print(f"search: {ranking[0]}")


def a_picture(page):
    page.click("#paint button")
    size = page.until(f"{text('#painted')}.includes('x') && {text('#painted')}", "the picture")
    assert size == "64x64" and page.run("document.querySelector('#picture').naturalWidth") == 64, size
    print(f"picture: {size}")


def what_went_on(page):
    """The tree and the events speak of what was done above."""
    for model in ["chat", "english", "painter"]:
        page.until(f"{text('#tree')}.includes('{model}: ')", f"{model} in the tree, with its queue")
        page.until(f"{text('#events')}.includes({model!r})", f"an event of {model}")
    tree = page.until(f"{text('#tree')}.includes('idle') && {text('#tree')}", "a worker at rest")
    print("tree: " + " | ".join(tree.split("\n")))
    assert page.run("parseFloat(document.querySelector('#memory .bar i').style.width)") > 0


def nothing_from_outside(page, address):
    names = page.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names and all(name.startswith((address, "data:")) for name in names), names
    told = page.post("/se/log", {"type": "browser"})
    told = [entry["message"] for entry in told if entry["level"] == "SEVERE"]
    # The first tries had no key.
    wrong = [message for message in told if "401" not in message]
    assert not wrong, wrong


def picture(page, file):
    content = base64.b64decode(page.send("GET", "/screenshot"))
    assert content.startswith(b"\x89PNG") and len(content) < MAX_PICTURE_BYTES, len(content)
    pathlib.Path(file).write_bytes(content)
    print(f"screenshot: {len(content)} bytes")


def main():
    driver = shutil.which("chromedriver")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not driver or not browser:
        print("the page is not tried: it needs the packages chromium and chromium-driver")
        return
    program = subprocess.Popen(
        [sys.argv[1], "--listen", "127.0.0.1:0", "--log", "warn"],
        env={**os.environ, "SERVE_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.fullmatch("listening on (.*)\n", program.stdout.readline())[1]
        page = Browser(driver, browser)
        try:
            the_key(page, address)
            for part in [the_tree, a_chat, a_search, a_picture, what_went_on]:
                part(page)
            nothing_from_outside(page, address)
            if len(sys.argv) > 2:
                picture(page, sys.argv[2])
            program.send_signal(signal.SIGTERM)
            page.until(f"{text('#connection')} !== 'live'", "the end of the feed")
        finally:
            page.end()
        words = program.communicate(timeout=60)[0].strip()
        assert program.returncode == 0 and " 0 requests were cut off" in words, words
        print(words)
    finally:
        program.kill()


main()
