"""What the browser keeps: conversations, what is half written, settings."""

import json
from collections.abc import Callable

from tests.fakes.page.page_server import PageServer, Said
from tests.fakes.page.page_tab import Tab
from tests.fakes.served import wait_until

KEY = "Object.keys(localStorage).find((key) => key.startsWith('sequoia.chat.'))"
HOLDS = f"""(texts) => {{
  const held = Object.values(JSON.parse(localStorage[{KEY}]).messages).map(({{ text }}) => text);
  return texts.every((text) => held.includes(text)) && held.length === texts.length;
}}"""
TEN = "one two three four five six seven eight nine ten"


def test_a_reload_keeps_the_conversation_and_what_is_in_the_box(tab: Tab, server: PageServer) -> None:
    server.say(Said("blue"), Said("indeed"))
    tab.send("sky?")
    tab.box.fill("half a thou")
    tab.reload()
    tab.shows("sky?", "blue")
    assert tab.box.input_value() == "half a thou"
    tab.send("really?")
    assert len(server.asked[1]["messages"]) == 3


def test_a_reload_in_the_middle_of_a_reply_keeps_what_was_written(tab: Tab, server: PageServer) -> None:
    server.say(Said(TEN, holds_after=2))
    tab.send("count", waits=False)
    tab.wait_for_text("one")
    partial = tab.texts()[-1]
    tab.reload()
    tab.shows("count", partial)
    assert "Not complete" in tab.replies.inner_text()
    server.go_on.set()
    tab.button("Write again").click()
    tab.wait_for_text("ten")
    tab.wait_for_end()
    tab.shows("count", TEN)


def test_chats_are_listed_opened_and_deleted(tab: Tab) -> None:
    tab.send("first question")
    tab.page.click("#new-chat")
    tab.shows()
    assert tab.page.locator("#welcome").is_visible()
    tab.send("second question")
    tab.page.click("#open-chats")
    titles = tab.page.locator("#chat-list .title")
    assert titles.all_inner_texts() == ["second question", "first question"]
    titles.last.click()
    tab.shows("first question", "hello world")
    tab.page.click("#open-chats")
    tab.page.locator("#chat-list li").last.get_by_role("button", name="Delete").click()
    assert titles.count() == 2, "asked again before anything is deleted"
    tab.page.get_by_role("button", name="Delete for good?").click()
    assert titles.all_inner_texts() == ["second question"]
    tab.page.keyboard.press("Escape")
    tab.shows("second question", "hello world")


def test_a_reply_goes_on_while_another_chat_is_shown(tab: Tab, server: PageServer) -> None:
    server.say(Said(TEN, holds_after=1), Said("quick"))
    tab.send("count", waits=False)
    tab.page.wait_for_selector("#stop:visible")
    tab.page.click("#new-chat")
    assert tab.page.locator("#send").is_visible()
    tab.send("quick?")
    tab.page.click("#open-chats")
    tab.page.locator("#chat-list .title", has_text="count").click()
    assert tab.page.locator("#stop").is_visible()
    server.go_on.set()
    tab.wait_for_end()
    tab.shows("count", TEN)
    assert server.left == 0


def test_two_tabs_with_one_conversation_lose_nothing(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.say(Said("a"), Said(TEN, holds_after=1), Said("c"), Said("d"))
    first = open_tab()
    first.send("one")
    second = open_tab(beside=first)
    second.shows("one", "a")
    first.send("two", waits=False)
    first.wait_for_text("two")
    wait_until(lambda: len(server.asked) == 2)
    second.send("three")
    server.go_on.set()
    first.wait_for_end()
    first.send("four")
    texts = ["one", "a", "two", TEN, "three", "c", "four", "d"]
    first.page.wait_for_function(HOLDS, arg=texts)
    second.page.wait_for_function(HOLDS, arg=texts)


def test_what_another_tab_wrote_over_is_kept_again(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.say(Said("a"), Said("b"))
    first = open_tab()
    first.send("one")
    second = open_tab(beside=first)
    old = second.page.evaluate(f"localStorage[{KEY}]")
    first.send("two")
    second.shows("one", "a", "two", "b")
    second.page.evaluate(f"(old) => localStorage.setItem({KEY}, old)", old)
    second.page.wait_for_function(HOLDS, arg=["one", "a", "two", "b"])
    first.shows("one", "a", "two", "b")


def test_what_other_programs_left_in_the_store_does_no_harm(tab: Tab) -> None:
    tab.send("hello")
    loops = {"a": {"id": "a", "parent": "a", "role": "user", "text": "loop"}}
    odd = {"finish": 7, "error": ["x"], "marks": [[1], "x"], "stats": {"tokens": 1}, "usage": 3, "reasoning": {}}
    loops["b"] = {"id": "b", "parent": "a", "role": "assistant", "text": "odd", **odd}
    chat = json.dumps({"id": "x", "messages": {**loops, "c": {"id": "c"}, "d": None}, "leaf": "b"})
    values = {
        "chat.1": "not json",
        "chat.2": "[1]",
        "chat.3": '{"id": 7}',
        "chat.x": chat,
        "settings": '{"top_p": "x"}',
    }
    for key, value in values.items():
        tab.page.evaluate("([key, value]) => localStorage.setItem(`sequoia.${key}`, value)", [key, value])
    tab.reload()
    tab.shows("hello", "hello world")
    tab.page.click("#open-chats")
    tab.page.locator("#chat-list .title", has_text="loop").click()
    tab.shows("loop", "odd")
    tab.page.check("#tint")
    tab.button("Write again").click()
    tab.shows("loop", "hello world")
    tab.page.get_by_label("Earlier version").click()
    tab.shows("loop", "odd")


def test_a_full_store_is_told_and_the_chat_goes_on(tab: Tab) -> None:
    tab.page.evaluate("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; 0")
    tab.send("hello")
    tab.shows("hello", "hello world")
    assert "The browser keeps no more" in tab.page.locator("#store-full").inner_text()


def test_settings_are_kept_and_sent(tab: Tab, server: PageServer) -> None:
    tab.page.click("#open-settings")
    given = {"Temperature": "0.7", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Max tokens": "64", "Seed": "7"}
    for label, value in given.items():
        tab.page.get_by_label(label, exact=True).fill(value)
    tab.page.get_by_label("System prompt").fill("Be brief.")
    tab.reload()
    tab.send("hello")
    sent = {name: server.asked[0][name] for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")}
    assert sent == {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 64, "seed": 7}
    assert server.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    tab.page.click("#open-settings")
    assert tab.page.get_by_label("Seed").input_value() == "7"
    tab.page.get_by_role("button", name="Use the model's own values").click()
    tab.page.keyboard.press("Escape")
    tab.send("again")
    assert not {"temperature", "seed"} & set(server.asked[1]) and server.asked[1]["messages"][0]["role"] == "system"


def test_empty_settings_show_the_models_own_values(tab: Tab) -> None:
    tab.page.wait_for_selector("table.plan")
    tab.page.click("#open-settings")
    shown = [
        tab.page.get_by_label(label, exact=True).get_attribute("placeholder") for label in ("Top p", "Top k", "Seed")
    ]
    assert shown == ["0.9", "0", ""]


def test_a_setting_that_makes_no_sense_is_named_and_not_sent(tab: Tab, server: PageServer) -> None:
    tab.page.click("#open-settings")
    for label, value, words in (
        ("Top p", "7", "at most 1"),
        ("Top p", "0", "more than 0"),
        ("Top k", "1.5", "a whole number"),
        ("Seed", "-1", "at least 0"),
    ):
        field = tab.page.get_by_label(label, exact=True)
        field.fill(value)
        assert field.get_attribute("aria-invalid") == "true" and words in tab.page.locator("#settings").inner_text()
    tab.page.keyboard.press("Escape")
    tab.send("hello")
    assert not {"top_p", "top_k", "seed"} & set(server.asked[0])
