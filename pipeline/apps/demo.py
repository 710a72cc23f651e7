"""Serve a local page on which to draw a digit and see the model's answer, live."""

from __future__ import annotations

import json
import sys
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import console
from pipeline.data import images
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.runtimes import classifier as models

NEEDS = ("onnxruntime", "PIL")
HOST = "127.0.0.1"  # nobody else's machine reaches it
HTTP = 80  # the port that browsers don't name
CANVAS = 280  # pixels a side, one byte each, 0 to 255
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:"
PAGES = {"/": ("demo.html", "text/html; charset=utf-8"), "/demo.js": ("demo.js", "text/javascript; charset=utf-8")}


def run(
    *,
    model: Annotated[Path, "The file that answers."] = Path("artifacts/mnist_cnn.onnx"),
    port: Annotated[int, "Port on this machine; 0 takes a free one."] = 8000,
    open: Annotated[bool, "Open the page in a browser."] = False,
) -> None:
    """Serve a page on this machine alone, on which one draws a digit: the model answers with probabilities, live.

    The shipped file runs in ONNX Runtime on one thread; the page shows its latency. Ctrl-C ends it.
    """
    installs.require("demo", NEEDS)
    with models.load(model, threads=1) as loaded, server(loaded, port) as serving:
        if loaded.record.facts.model.prepare != "digit":
            raise UsageError(f"{model}: is no model of digits, which demo is for; `pipeline predict` takes pictures")
        url = f"http://{HOST}:{serving.server_address[1]}/"
        console.result(f"{loaded.record.name} answers at {url} (Ctrl-C ends it)")
        if open:
            webbrowser.open(url)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            console.say("ended")


def server(loaded: models.Classifier, port: int) -> ThreadingHTTPServer:
    """The server, listening but not serving yet. UsageError if the port can't be had."""
    handler = type("Handler", (_Handler,), {"loaded": loaded})
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 0 to 65535")
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        raise UsageError(f"--port {port}: can't be had ({error.strerror}); --port 0 takes a free one") from error


def answer(loaded: models.Classifier, drawing: bytes) -> dict[str, Any]:
    """What the model makes of a drawing, one byte a pixel, `CANVAS` a side, light on dark."""
    pixels = images.prepare(np.frombuffer(drawing, np.uint8).reshape(CANVAS, CANVAS))
    if not pixels.any():
        return {"empty": True}
    begun = time.perf_counter_ns()
    logits = loaded(pixels)
    taken = (time.perf_counter_ns() - begun) / 1000
    chances = models.softmax(logits)[0]
    return {
        "answer": loaded.classes[int(chances.argmax())],
        "probabilities": [round(float(chance), 6) for chance in chances],
        "classes": loaded.classes,
        "microseconds": round(taken, 1),
        "pixels": pixels.ravel().tolist(),  # as the model sees it
        "file": loaded.record.name,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # Ctrl-C doesn't wait for a browser that keeps its connection

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away before its answer isn't an error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    loaded: models.Classifier
    timeout = 10  # seconds that a client may take
    server_version, sys_version = "edge-pipeline", ""

    def do_GET(self) -> None:
        if not self._asked_here():
            return
        if self.path == "/classes":
            return self._send(200, json.dumps(self.loaded.classes).encode(), "application/json")
        file, kind = PAGES.get(self.path, (None, ""))
        if file is None:
            return self._send(404, b"not here\n", "text/plain")
        self._send(200, resources.files("pipeline.apps.pages").joinpath(file).read_bytes(), kind)

    def do_POST(self) -> None:
        if not self._asked_here():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict" or length != str(CANVAS * CANVAS):
            return self._send(400, f"expected {CANVAS * CANVAS} bytes to /predict\n".encode(), "text/plain")
        drawing = self.rfile.read(CANVAS * CANVAS)
        if len(drawing) != CANVAS * CANVAS:
            return self._send(400, b"cut off\n", "text/plain")
        self._send(200, json.dumps(answer(self.loaded, drawing)).encode(), "application/json")

    def _asked_here(self) -> bool:
        """A page elsewhere may have its name point here: only this machine's own names are answered."""
        port = self.server.server_address[1]
        here = {f"{HOST}:{port}", f"localhost:{port}", *((HOST, "localhost") if port == HTTP else ())}
        if self.headers.get("Host") in here:
            return True
        self._send(403, b"only for this machine\n", "text/plain")
        return False

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests aren't news."""
