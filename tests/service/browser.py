"""Debian's Chromium, without a window, that tells everything that a page did wrong."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from devcluster import packages

_WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
ELSEWHERE = "gateway.test"
"""A name of this machine that the browser does not take for it."""
CONTRAST = """
() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => [red, green, blue]
    .map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((total, value, at) => total + value * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    const found = channels(getComputedStyle(element).backgroundColor);
    return found.length < 4 || found[3] === 1 ? found : ground(element.parentElement);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [one, other] = [luminance(channels(getComputedStyle(element).color)), luminance(ground(element))];
    found.push([texts.currentNode.data, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]);
  }
  return found;
}
"""
"""Each text that is to be seen, with its contrast to what it stands on, by WCAG 2.2."""


@contextmanager
def chromium(home: str) -> Iterator[Browser]:
    """Beside it, no event loop can run in the thread of this one. Raises ClusterError without Chromium."""
    packages.ensure(["chromium", "fonts-dejavu-core"], agreed=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # The sandbox refuses root.
            chromium_sandbox=os.geteuid() != 0,
            args=[f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"],
            env={"PATH": os.environ["PATH"], "HOME": home},
        )
        yield browser
        browser.close()


@dataclass
class Tab:
    """A tab of its own browser profile, or of one that exists."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors, dialogs, and what a console said."""

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss())[1])
        self.page.add_init_script(_WATCH)

    def says(self, text: str, timeout_s: float = 15) -> None:
        """Wait until the page's status has this text."""
        self.page.wait_for_function(
            "text => document.getElementById('status').textContent.includes(text)", arg=text, timeout=timeout_s * 1000
        )

    def enter(self, key: str) -> None:
        self.page.get_by_label("Your key", exact=True).fill(key)
        self.page.get_by_role("button", name="Show the fleet").click()

    def ask(self, program: str) -> Any:
        return self.page.evaluate(program)

    @property
    def text(self) -> str:
        return self.page.locator("body").inner_text()


@contextmanager
def tab(
    browser: Browser, url: str, width: int = 1100, scheme: Literal["light", "dark"] = "light", within: BrowserContext | None = None
) -> Iterator[Tab]:
    """A tab with the page at `url`; `within`: the profile of another tab."""
    context = within or browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        found = Tab(context.new_page())
        found.page.goto(url)
        yield found
        found.page.close()
    finally:
        if within is None:
            context.close()
