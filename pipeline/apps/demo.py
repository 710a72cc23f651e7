"""Serve a local page on which to draw a digit and see the model's answer, live."""

from __future__ import annotations

import json
import re
import sys
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import console
from pipeline.data import digits
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.runtimes import classifier as models

NEEDS = ("onnxruntime", "PIL", "cv2")
HOST = "127.0.0.1"  # unreachable from other machines
CANVAS = 280  # pixels a side, one byte each, 0 to 255
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src data:",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
PAGES = {"/": ("demo.html", "text/html; charset=utf-8"), "/demo.js": ("demo.js", "text/javascript; charset=utf-8")}


def run(
    *,
    model: Annotated[Path, "Model file to use."] = Path("artifacts/mnist_cnn.onnx"),
    port: Annotated[int, "Port on this machine; 0 takes a free one."] = 8000,
    open: Annotated[bool, "Open the page in a browser."] = False,
) -> None:
    """Serve a page, on this machine alone, to draw a digit on: the model answers with probabilities, live.

    The shipped file runs in ONNX Runtime on one thread; the page shows its latency. Ctrl-C ends it.
    """
    installs.require("demo", NEEDS)
    with models.load(model, threads=1) as loaded, server(loaded, port) as serving:
        if loaded.record.facts.model.prepare != "digit":
            raise UsageError(f"{model}: expected a model of digits; `pipeline predict` takes pictures")
        url = f"http://{HOST}:{serving.server_port}/"
        console.result(f"{loaded.record.name} answers at {url} (Ctrl-C ends it)")
        if open:
            webbrowser.open(url)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            console.say("ended")


def server(loaded: models.Classifier, port: int) -> ThreadingHTTPServer:
    """Return a server that listens but does not serve yet. UsageError if the port can't be used."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 0 to 65535")
    try:
        return _Server((HOST, port), type("Handler", (_Handler,), {"loaded": loaded}))
    except OSError as error:
        raise UsageError(f"--port {port}: can't be used ({error.strerror}); --port 0 takes a free one") from error


def answer(loaded: models.Classifier, drawing: bytes) -> dict[str, Any]:
    """Classify a drawing, one byte a pixel, `CANVAS` a side, light on dark; the result is ready for JSON."""
    (digit,) = digits.find(np.frombuffer(drawing, np.uint8).reshape(CANVAS, CANVAS), one=True)
    if digit.remark == digits.NONE:
        return {"empty": True}
    begun = time.perf_counter_ns()
    logits = loaded(digit.pixels)
    microseconds = (time.perf_counter_ns() - begun) / 1000
    probabilities = models.softmax(logits)[0]
    return {
        "answer": loaded.classes[int(probabilities.argmax())],
        "probabilities": [round(float(each), 6) for each in probabilities],
        "microseconds": round(microseconds, 1),
        "pixels": digit.pixels.ravel().tolist(),  # as the model sees it
        "remark": digit.remark,
        "file": loaded.record.name,
    }


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that went away before its answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    loaded: models.Classifier
    timeout = 10  # seconds that a client may take
    server_version, sys_version = "edge-pipeline", ""

    def do_GET(self) -> None:
        if self.path == "/classes":
            self._send(200, "application/json", json.dumps(self.loaded.classes).encode())
        elif self.path in PAGES:
            file, kind = PAGES[self.path]
            self._send(200, kind, resources.files("pipeline.apps.pages").joinpath(file).read_bytes())
        else:
            self._send(404, "text/plain", b"no such page\n")

    def do_POST(self) -> None:
        size = CANVAS * CANVAS
        expected = self.path == "/predict" and self.headers.get("Content-Length") == str(size)
        drawing = self.rfile.read(size) if expected else b""
        if len(drawing) == size:
            self._send(200, "application/json", json.dumps(answer(self.loaded, drawing)).encode())
        else:
            self._send(400, "text/plain", f"expected {size} bytes to /predict\n".encode())

    def parse_request(self) -> bool:
        """Refuse requests by another name than this machine's own: a page elsewhere may have its name point here."""
        if not super().parse_request():
            return False
        if re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", self.headers.get("Host", ""), re.ASCII):
            return True
        self._send(403, "text/plain", b"only for this machine\n")
        return False

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet about requests."""
