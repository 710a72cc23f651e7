"""Headless Chromium for tests: nothing of the page may fail, nothing may be loaded from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SCREENS = Path(__file__).parents[1] / "screens"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--font-render-hinting=none"]
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1100, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1100, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}


def chromium() -> str:
    """Where it is; skips the test where there is none, unless EDGE_PIPELINE_BROWSER=required, as in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found and os.environ.get("EDGE_PIPELINE_BROWSER") == "required":
        raise AssertionError("no Chromium here: expected one; apt install chromium")
    return found or pytest.skip("no Chromium here; apt install chromium")


class Page:
    """A page and what went wrong on it."""

    def __init__(self, page) -> None:
        self.page, self.errors, self.requests = page, [], []
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def outside(self, own: str) -> list[str]:
        """What was asked for besides the page's own."""
        return [url for url in self.requests if not url.startswith((own, "data:"))]

    def fits(self) -> bool:
        """Whether nothing has to be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def keep(self, name: str) -> None:
        """A screenshot for people, in tests/screens if EDGE_PIPELINE_SCREENS is set."""
        shot = self.page.screenshot(full_page=False)
        assert len(set(shot)) > 100
        if os.environ.get("EDGE_PIPELINE_SCREENS"):
            SCREENS.mkdir(exist_ok=True)
            (SCREENS / f"{name}.png").write_bytes(shot)


@contextlib.contextmanager
def opened(view: str) -> Iterator[Page]:
    """An empty page in one of VIEWS."""
    from playwright.sync_api import sync_playwright

    where = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=where, args=FLAGS)
        try:
            yield Page(browser.new_page(**VIEWS[view]))
        finally:
            browser.close()
