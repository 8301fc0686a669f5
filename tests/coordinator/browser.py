"""A headless Chromium, and what it complained about."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

WITHOUT = "SHARE_DIST_NO_BROWSER"
"""Set to 1 where no Chromium can be installed: tests that need one are skipped then, and say so."""

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def find_browser() -> str:
    """Return Chromium's program; skip where it was said that there is none, fail where it was not."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.environ.get(WITHOUT) == "1":
        pytest.skip(f"{WITHOUT}=1: the operator's page is not looked at")
    pytest.fail(
        "there is no Chromium to look at the operator's page with: run "
        f"`.ci/install-system-packages chromium`, or set {WITHOUT}=1 where that cannot be"
    )


class Look:
    """
    One tab of a browser.

    Args:
        page: The tab.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def open(self, address: str) -> None:
        self.page.goto(address)

    def cells(self, table: str) -> list[list[str]]:
        """The visible text of each cell of each row."""
        rows = self.page.locator(f"{table} tbody tr").all()
        return [row.locator("td").all_inner_texts() for row in rows]

    def tile(self, label: str) -> str:
        """The number of a tile."""
        tile = self.page.locator(".tile", has=self.page.get_by_text(label, exact=True))
        return tile.locator("dd").first.inner_text()

    def inked(self, chart: str) -> int:
        """How many pixels of a chart are drawn upon."""
        # rows come a moment before the charts that are drawn from them
        self.page.wait_for_selector(f"#{chart} canvas", state="attached")
        return self.page.evaluate(
            """(id) => {
              const canvas = document.querySelector(`#${id} canvas`);
              const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
              let inked = 0;
              for (let i = 3; i < data.length; i += 4) inked += data[i] > 0;
              return inked;
            }""",
            chart,
        )


@contextlib.contextmanager
def a_browser() -> Iterator[Any]:
    """Run Chromium; each call of what is yielded opens a tab that shares nothing with the others."""
    program = find_browser()
    with sync_playwright() as playwright:
        # as root, as in a container, Chromium has no sandbox; it sees our own pages only
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield lambda **options: Look(browser.new_context(**options).new_page())
        browser.close()
