"""A real browser without a network: what it shows, asks for and complains of."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Where all must be there (CI), a missing browser fails by itself; elsewhere it skips, saying why.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CDBENCH_ENGINE_NEEDED"),
    reason="no Chromium on this machine: apt-get install chromium",
)
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


class Tab:
    """A tab that keeps what its page says and asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    @property
    def outside(self) -> list[str]:
        """What it asked of the network."""
        return [url for url in self.asked if not url.startswith(("file:", "data:"))]

    def faults(self) -> list[str]:
        """What axe-core finds, one line each."""
        found = Axe().run(self.page, options={"runOnly": _RULES}).response
        assert len(found["passes"]) > 5  # it did look
        return [f"{each['impact']}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found["violations"]]


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; closed at the end."""
    assert CHROMIUM, "no Chromium on this machine: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def tab(started: Any, *, width: int = 1280, scheme: str = "light", offline: bool = True) -> Iterator[Tab]:
    """A fresh tab; axe-core needs the page's content security policy out of its way."""
    context = started.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=offline, bypass_csp=True
    )
    try:
        yield Tab(context.new_page())
    finally:
        context.close()
