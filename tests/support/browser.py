"""Headless Chromium for tests: nothing of the page may fail, nothing may be loaded from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SCREENS = Path(__file__).parents[1] / "screens"
FLAGS = ["--disable-gpu", "--font-render-hinting=none"]
DESK = {"width": 1100, "height": 900}
VIEWS = {
    "light": {"color_scheme": "light", "viewport": DESK},
    "dark": {"color_scheme": "dark", "viewport": DESK},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}


def chromium() -> str:
    """Find it, or skip the test; with EDGE_PIPELINE_BROWSER=required, as in CI, fail it."""
    if path := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return path
    give_up = pytest.fail if os.environ.get("EDGE_PIPELINE_BROWSER") == "required" else pytest.skip
    give_up("no Chromium here; apt install chromium")


class Page:
    """A page, what went wrong on it, and what it requested."""

    def __init__(self, page) -> None:
        self.page, self.errors, self.requests = page, [], []
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def outside(self, own: str) -> list[str]:
        """List the requests that went anywhere but to the page's own address."""
        return [url for url in self.requests if not url.startswith((own, "data:"))]

    def fits(self) -> bool:
        """Tell whether the page needs no scrolling sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def keep(self, name: str) -> None:
        """Check that a screenshot isn't blank, and save it in tests/screens if EDGE_PIPELINE_SCREENS is set."""
        shot = self.page.screenshot()
        assert len(set(shot)) > 100
        if os.environ.get("EDGE_PIPELINE_SCREENS"):
            SCREENS.mkdir(exist_ok=True)
            (SCREENS / f"{name}.png").write_bytes(shot)


@contextlib.contextmanager
def opened(view: str) -> Iterator[Page]:
    """Open an empty page in one of VIEWS."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=FLAGS) as browser:
        yield Page(browser.new_page(**VIEWS[view]))
