from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import threading

import numpy as np
import pytest
from playwright.sync_api import expect

from pipeline import load
from pipeline.apps import demo
from tests.support import browser, command, one_line, started


@pytest.fixture(scope="module")
def served(release):
    """The port of a demo that serves."""
    with load(release / "mnist_cnn.onnx", threads=1) as model, demo.server(model, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


DIGITS = {  # strokes on a canvas of 280 × 280
    "1": [[(140, 40), (140, 240)]],
    "7": [[(70, 60), (210, 60), (120, 240)]],
    "0": [[(140 + 60 * np.sin(t), 140 - 90 * np.cos(t)) for t in np.linspace(0, 2 * np.pi, 24)]],
    "2": [[(80, 90), (100, 55), (150, 45), (195, 75), (190, 120), (80, 230), (210, 230)]],
    "4": [[(90, 40), (80, 150), (210, 150)], [(185, 50), (180, 245)]],
}


def draw(page, digit: str) -> None:
    box = page.locator("#drawing").bounding_box()
    for stroke in DIGITS[digit]:
        for number, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
            if number == 0:
                page.mouse.down()
        page.mouse.up()


@pytest.mark.parametrize(
    "view", ["light", *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("dark", "phone"))]
)
def test_one_draws_digits_and_reads_the_answers(served, view):
    with browser.opened(view) as opened:
        page, url = opened.page, f"http://127.0.0.1:{served}/"
        page.goto(url)
        for digit in DIGITS:
            draw(page, digit)
            expect(page.locator("#answer")).to_have_text(digit, timeout=30_000)
            page.wait_for_load_state("networkidle")
            cells = page.locator("#bars .row span:last-child").all_text_contents()
            shown = [float(cell.rstrip(" %")) for cell in cells]
            assert len(shown) == 10 and sum(shown) == pytest.approx(100, abs=0.6)
            assert int(np.argmax(shown)) == int(digit) and shown[int(digit)] > 50
            assert re.search(r"\d+ µs in mnist_cnn\.onnx, one thread", page.text_content("#latency"))
            if digit == "2":
                opened.keep(f"demo-{view}")
            page.click("#clear")
            assert page.text_content("#answer") == "–"
        assert opened.fits() and not opened.errors and not opened.outside(url)


def test_a_finger_draws_too(served):
    with browser.opened("phone") as opened:
        page = opened.page
        page.goto(f"http://127.0.0.1:{served}/")
        box = page.locator("#drawing").bounding_box()
        touch = page.context.new_cdp_session(page)
        for kind, points in (("touchStart", [(140, 40)]), *(("touchMove", [(140, y)]) for y in range(50, 240, 10))):
            at = [{"x": box["x"] + x, "y": box["y"] + y} for x, y in points]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect(page.locator("#answer")).to_have_text("1", timeout=30_000)
        assert page.evaluate("window.scrollY") == 0, "drawing doesn't scroll the page"


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.request(method, path, body, headers)
    reply = link.getresponse()
    return reply.status, reply.read(), dict(reply.getheaders())


def test_it_answers_as_predict_does(served, digits, release):
    drawing = np.pad(np.kron(digits.images[0, 0], np.ones((8, 8), np.uint8)), 28)
    status, body, _ = ask(served, "POST", "/predict", drawing.tobytes())
    answer = json.loads(body)
    assert status == 200 and answer["answer"] == "7" and answer["microseconds"] > 0
    with load(release / "mnist_cnn.onnx") as model:
        pixels = np.array(answer["pixels"], np.uint8).reshape(28, 28)
        assert np.allclose(model.probabilities(pixels)[0], answer["probabilities"], atol=1e-5)
    assert json.loads(ask(served, "POST", "/predict", bytes(demo.CANVAS**2))[1]) == {"empty": True}


def test_what_is_not_its_own_is_refused(served):
    assert ask(served, "GET", "/../pyproject.toml")[0] == 404
    assert ask(served, "POST", "/predict", b"short")[0] == 400
    assert ask(served, "POST", "/elsewhere", bytes(demo.CANVAS**2))[0] == 400
    assert ask(served, "POST", "/predict", **{"Content-Length": "-1"})[0] == 400
    refused = ("evil.example", "localhost.evil.example:80", "localhost:80.evil.example", "localhost:", "::1", "")
    own = ("localhost", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", "[::1]")  # as through `ssh -L 9000:…`
    for host, status in (*((host, 403) for host in refused), *((host, 200) for host in own)):
        assert ask(served, "GET", "/", Host=host)[0] == status
        assert ask(served, "POST", "/predict", bytes(demo.CANVAS**2), Host=host)[0] == status
    status, page, headers = ask(served, "GET", "/")
    assert status == 200 and b"http" not in page and headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_command_serves_this_machine_alone_and_ends_with_ctrl_c(release):
    line = ["demo", "--model", release / "mnist_cnn.onnx", "--port"]
    running = started(*line, 0, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", running.stdout.readline())[1])
        assert ask(port, "GET", "/")[0] == 200
        assert "--port" in one_line(command(*line, port), 2)
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode in (0, 130) and "Traceback" not in errors
