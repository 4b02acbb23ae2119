"""Replies on the page: streamed, stopped, written again, copied; and what is left when they fail."""

from collections.abc import Callable

import pytest

from offload_runtime.serve.views import activity_view
from offload_runtime.speculation.target import PassProgress
from tests.fakes.page.page_server import PageServer, Said
from tests.fakes.page.page_tab import Tab

TEN = "one two three four five six seven eight nine ten"


def test_a_reply_is_shown_while_it_is_written(tab: Tab, server: PageServer) -> None:
    server.say(Said(TEN, holds_after=2))
    tab.send("count", waits=False)
    tab.wait_for_text("one")
    assert not tab.page.locator("#send").is_visible() and tab.page.locator("#stop").is_visible()
    assert "ten" not in tab.texts()[-1]
    server.go_on.set()
    tab.wait_for_end()
    tab.shows("count", TEN)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "count"}]
    assert server.asked[0]["stream"] and server.asked[0]["sequoia"] == {"steps": True}
    assert server.asked[0]["model"] == "Llama-3-70B-int4"


@pytest.mark.parametrize("way", ["escape", "button"])
def test_a_stopped_reply_stays_and_the_server_is_let_go(tab: Tab, server: PageServer, way: str) -> None:
    server.say(Said(TEN, holds_after=2), Said("yes"))
    tab.send("count", waits=False)
    tab.wait_for_text("one")
    partial = tab.texts()[-1]
    tab.page.keyboard.press("Escape") if way == "escape" else tab.page.click("#stop")
    tab.wait_for_end()
    assert tab.texts()[-1] == partial and "Stopped." in tab.replies.last.inner_text()
    tab.send("and now?")
    assert [message["content"] for message in server.asked[1]["messages"]] == ["count", partial, "and now?"]
    assert server.left == 1


def test_what_is_stopped_before_its_first_word_is_not_sent_back(tab: Tab, server: PageServer) -> None:
    server.say(Said(TEN, holds_after=0), Said("yes"))
    tab.send("count", waits=False)
    tab.page.wait_for_selector("#stop:visible")
    tab.page.keyboard.press("Escape")
    tab.send("please")
    assert server.asked[1]["messages"] == [{"role": "user", "content": "count\n\nplease"}]


def test_a_reply_written_again_keeps_the_first(tab: Tab, server: PageServer) -> None:
    server.say(Said("heads"), Said("tails"))
    tab.send("toss a coin")
    tab.button("Write again").click()
    tab.wait_for_text("tails")
    tab.wait_for_end()
    tab.shows("toss a coin", "tails")
    assert server.asked[0]["messages"] == server.asked[1]["messages"]
    assert "2/2" in tab.replies.last.inner_text()
    tab.page.get_by_label("Earlier version").click()
    tab.shows("toss a coin", "heads")
    tab.reload()
    tab.shows("toss a coin", "heads")
    tab.page.get_by_label("Later version").click()
    tab.shows("toss a coin", "tails")


def test_an_edited_message_starts_a_branch(tab: Tab, server: PageServer) -> None:
    server.say(Said("blue"), Said("since it is"), Said("green"))
    tab.send("sky?")
    tab.send("why?")
    tab.mine.first.get_by_role("button", name="Edit").click()
    editor = tab.page.get_by_label("Edit the message")
    assert editor.input_value() == "sky?"
    editor.fill("grass?")
    editor.press("Enter")
    tab.wait_for_text("green")
    tab.wait_for_end()
    tab.shows("grass?", "green")
    assert server.asked[2]["messages"] == [{"role": "user", "content": "grass?"}]
    tab.page.get_by_label("Earlier version").click()
    tab.shows("sky?", "blue", "why?", "since it is")


def test_editing_can_be_given_up(tab: Tab, server: PageServer) -> None:
    tab.send("sky?")
    tab.button("Edit").click()
    editor = tab.page.get_by_label("Edit the message")
    editor.fill("something else")
    editor.press("Escape")
    assert tab.texts()[0] == "sky?" and len(server.asked) == 1
    assert tab.page.evaluate("document.activeElement.textContent") == "Edit"


def test_copying_takes_the_text_as_it_was_written(tab: Tab, server: PageServer) -> None:
    text = "Some **bold** words:\n\n```python\nif a < b:\n\tprint('x')\n```\n"
    server.say(Said(text))
    tab.send("code")
    tab.replies.get_by_role("button", name="Copy").last.click()
    tab.page.wait_for_selector("button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == text
    tab.page.locator("figure.code button").click()
    tab.page.wait_for_selector("figure.code button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "if a < b:\n\tprint('x')"


def test_copying_works_without_a_clipboard_for_pages(tab: Tab) -> None:
    tab.send("hello")
    tab.page.evaluate("navigator.clipboard.writeText = () => Promise.reject(new Error('insecure')); 0")
    tab.replies.get_by_role("button", name="Copy").click()
    tab.page.wait_for_selector("button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "hello world"


def test_reasoning_is_folded_and_sent_back_as_such(tab: Tab, server: PageServer) -> None:
    server.say(Said("4", reasoning="two and *two*"), Said("5"))
    tab.send("2+2")
    thoughts = tab.replies.locator("details.thoughts")
    assert thoughts.get_attribute("open") is None and "two and" not in tab.replies.inner_text()
    thoughts.locator("summary").click()
    tab.page.wait_for_selector(".assistant .thoughts em")
    assert thoughts.locator("em").inner_text() == "two"
    tab.send("2+3")
    reply = {"role": "assistant", "content": "4", "reasoning_content": "two and *two*"}
    assert server.asked[1]["messages"][1] == reply


FAILURES = [
    (Said(TEN, breaks_after=2), "the disk broke", "one"),
    (Said(TEN, is_cut=True), "The connection ended before the reply was complete.", "ten"),
    (Said(status=503, message="all 8 places are taken, try again in 5 s"), "all 8 places are taken", ""),
    (Said(status=400, message="`min_p` must be from 0 to 1\n  got 7"), "`min_p` must be from 0 to 1\n  got 7", ""),
    (Said(status=500, message=""), "The server failed.", ""),
]


@pytest.mark.parametrize(("failure", "words", "kept"), FAILURES, ids=lambda value: str(value)[:24])
def test_a_failure_is_told_in_words_and_can_be_repaired(
    tab: Tab, server: PageServer, failure: Said, words: str, kept: str
) -> None:
    server.say(failure, Said("all is well"))
    tab.send("go")
    assert words in tab.replies.locator(".error").inner_text()
    assert kept in tab.texts()[-1]
    tab.reload()
    assert words in tab.replies.locator(".error").inner_text()
    tab.button("Write again").click()
    tab.wait_for_text("all is well")
    tab.wait_for_end()
    assert not tab.replies.locator(".error").is_visible()
    assert ("2/2" in tab.replies.inner_text()) == bool(kept), "a reply without a word is not a version"


def test_a_server_that_is_gone_is_told_in_words(open_tab: Callable[..., Tab], server: PageServer) -> None:
    tab = open_tab()
    tab.page.route("**/v1/**", lambda route: route.abort())
    tab.send("hello?")
    assert "The server does not answer. Is it still running?" in tab.replies.inner_text()
    assert tab.texts()[0] == "hello?"


def test_the_key_is_asked_for_and_the_question_is_asked_again(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.key = "secret"
    tab = open_tab()
    dialog = tab.page.locator("#key")
    dialog.wait_for()
    assert "an API key is needed" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    tab.send("hello", waits=False)
    dialog.wait_for()
    dialog.get_by_label("Key").fill("secret")
    tab.page.keyboard.press("Enter")
    tab.wait_for_text("hello world")
    tab.wait_for_end()
    assert tab.page.locator("#model").inner_text() == "Llama-3-70B-int4"
    tab.reload()
    tab.send("still there?")
    assert len(server.asked) == 2 and "secret" not in str(tab.page.evaluate("({...localStorage})"))


def test_what_happens_before_the_first_word_is_said(tab: Tab, server: PageServer) -> None:
    server.activity = activity_view(None, 4, 2, 4)
    server.say(Said(TEN, holds_after=0))
    tab.send("count", waits=False)
    tab.wait_for_text("Waiting for a place: 4 texts are being written, 2 waiting")
    server.activity = activity_view(PassProgress(900, 1, 80, 21, 5.0), 4, 0, 4)
    tab.wait_for_text("Reading the prompt · layer 21 of 80 · 15 s left")
    server.activity = activity_view(PassProgress(9000, 9, 720, 73, 60.0), 1, 0, 4)
    tab.wait_for_text("Reading the prompt · 10 % of 9 passes · 9 min left")
    server.go_on.set()
    tab.wait_for_end()
    assert "Reading" not in tab.replies.inner_text()


def test_passes_that_only_read_are_counted(tab: Tab, server: PageServer) -> None:
    server.say(Said(TEN, reads=(512, 512), holds_after=2))
    tab.send("count", waits=False)
    tab.wait_for_text("Reading the prompt: 1024 tokens so far")
    server.go_on.set()
    tab.wait_for_end()
    tab.shows("count", TEN)


def test_a_message_is_never_sent_twice_and_one_waits_in_the_box_while_a_reply_is_written(
    tab: Tab, server: PageServer
) -> None:
    server.say(Said(TEN, holds_after=1))
    tab.send("count", waits=False)
    tab.page.wait_for_selector("#stop:visible")
    tab.box.fill("next")
    tab.box.press("Enter")
    assert tab.box.input_value() == "next"
    server.go_on.set()
    tab.wait_for_end()
    assert len(server.asked) == 1 and tab.box.input_value() == "next"
