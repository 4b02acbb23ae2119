"""The page and the server it is made for, over the bundled pair of models."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from offload_runtime.serve.http.guard import Access
from tests.fakes.page.page_tab import Tab
from tests.fakes.served import Served, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUESTION = "Show me the code of `textwrap.dedent`."
SETTINGS = {"Temperature": "0", "Top p": "0.9", "Top k": "0", "Min p": "0", "Max tokens": "48", "Seed": "1"}
KEPT = """() => {
  const key = Object.keys(localStorage).find((key) => key.startsWith("sequoia.chat."));
  const { messages, leaf } = JSON.parse(localStorage[key]);
  return messages[leaf];
}"""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    options = {"device": "cpu", "dtype": "float32", "tree": "sequoia", "parallel": 2}
    with (
        OffloadRuntime.from_pretrained(DEMO_TARGET, draft=DEMO_DRAFT, **options) as runtime,
        Served(runtime, access=Access("secret", loopback=True)) as served,
    ):
        yield served


@pytest.fixture
def tab(browser: "Browser", served: Served) -> Iterator[Tab]:
    """The page with a key and with settings that make replies the same each time."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    tab = Tab(context, served.url)
    tab.page.get_by_label("Key", exact=True).fill("secret")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("table.plan")
    tab.page.click("#open-settings")
    for label, value in SETTINGS.items():
        tab.page.get_by_label(label, exact=True).fill(value)
    tab.page.keyboard.press("Escape")
    yield tab
    assert not tab.faults()
    context.close()


def test_a_conversation_is_what_the_model_alone_would_write(tab: Tab, served: Served) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    for question in (QUESTION, "And of `textwrap.indent`?"):
        messages[-1:] = [{"role": "user", "content": question}]
        tab.send(question)
        assert not tab.replies.last.locator(".error").is_visible(), tab.replies.last.inner_text()
        reply = served.runtime.generate(messages, temperature=0, top_p=0.9, top_k=0, min_p=0, max_new_tokens=48)
        kept = tab.page.evaluate(KEPT)
        assert [kept["text"], kept["finish"]] == [reply.text, reply.finish_reason] and reply.text
        assert kept["stats"]["tokens"] == len(reply.token_ids) and kept["stats"]["passes"] == reply.stats.passes
        assert kept["usage"]["prompt"] == reply.stats.prompt_tokens
        messages += [{"role": "assistant", "content": reply.text}, {}]


def test_what_the_machine_does_is_drawn(tab: Tab, served: Served) -> None:
    tab.page.check("#tint")
    tab.send(QUESTION)
    kept = tab.page.evaluate(KEPT)
    drawn = tab.page.evaluate("Array.from(document.querySelectorAll('.message .token'), (node) => node.textContent)")
    assert "".join(drawn) == kept["text"] and len(drawn) > kept["stats"]["passes"]
    assert tab.page.locator(".message .depth-1").count(), "something was accepted"
    assert tab.page.locator("#tree svg").count() == 1
    assert "drafted tokens" in tab.page.locator("#tree-words").inner_text()
    assert served.runtime.plan.model in tab.page.locator("#plan").inner_text()


def test_a_stopped_reply_gives_its_place_back(tab: Tab, served: Served) -> None:
    tab.page.click("#open-settings")
    tab.page.get_by_label("Max tokens").fill("2000")
    tab.page.keyboard.press("Escape")
    tab.send(QUESTION, waits=False)
    tab.page.wait_for_selector(".assistant .text p")
    tab.page.keyboard.press("Escape")
    tab.wait_for_end()
    wait_until(lambda: served.engine.running == 0)
    assert "Stopped." in tab.replies.inner_text()


def test_a_refusal_of_the_server_is_shown(tab: Tab) -> None:
    tab.page.evaluate("localStorage['sequoia.settings'] = JSON.stringify({system: '', max_tokens: 9999999})")
    tab.send("word " * 9000)
    assert "the context holds" in tab.replies.locator(".error").inner_text()
