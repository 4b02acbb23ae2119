"""A tab of a browser that shows the page, with what tests do in it; it notes errors and breaches of the policy."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator

WATCH = """
window.breaches = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  breaches.push(`${violatedDirective}: ${blockedURI}`));
for (const name of ["alert", "confirm", "prompt"]) window[name] = () => breaches.push(`${name}() was called`);
"""
TEXTS = "Array.from(document.querySelectorAll('.message > .text'), (node) => node.innerText)"
EXPECTED = "Failed to load resource"  # what the console says of any answer but 200


class Tab:
    """One tab, open at the page of the server at `url`."""

    def __init__(self, context: "BrowserContext", url: str):
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self._faults: list[str] = []
        self.page.add_init_script(WATCH)
        self.page.on("pageerror", lambda error: self._faults.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(url)
        self.page.wait_for_function("() => document.title !== 'sequoia'")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(EXPECTED):
            self._faults.append(message.text)

    def faults(self) -> list[str]:
        """Errors, warnings and breaches of the policy since the page was loaded."""
        return [*self._faults, *self.page.evaluate("breaches")]

    def send(self, text: str, waits: bool = True) -> None:
        """Write a message and press Enter; then wait for the reply's end."""
        self.box.fill(text)
        self.box.press("Enter")
        if waits:
            self.wait_for_end()

    def wait_for_end(self) -> None:
        self.page.wait_for_selector("#send:visible")

    def wait_for_text(self, text: str) -> None:
        """Wait until the last reply says `text`."""
        self.page.wait_for_function("text => document.querySelector('#thread').innerText.includes(text)", arg=text)

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_function("() => document.title !== 'sequoia'")

    @property
    def box(self) -> "Locator":
        return self.page.locator("#message")

    @property
    def replies(self) -> "Locator":
        return self.page.locator(".message.assistant")

    @property
    def mine(self) -> "Locator":
        return self.page.locator(".message.user")

    def button(self, name: str) -> "Locator":
        """The last button of this name that is visible."""
        return self.page.locator("button:visible", has_text=name).last

    def texts(self) -> list[str]:
        """What the messages say, without buttons and notes."""
        texts: list[str] = self.page.evaluate(TEXTS)
        return texts

    def shows(self, *texts: str) -> None:
        """Wait until the messages say these texts; AssertionError if they do not."""
        waits = f"texts => JSON.stringify({TEXTS}) === JSON.stringify(texts)"
        from playwright.sync_api import TimeoutError as TooLate

        with suppress(TooLate):
            self.page.wait_for_function(waits, arg=texts, timeout=5_000)
        assert self.texts() == [*texts]
