"""The page without a mouse, and for those who hear it."""

from tests.fakes.page.page_server import PageServer, Said
from tests.fakes.page.page_tab import Tab

FOCUSED = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node.closest(".box") ?? node);
  return [node.id || node.textContent.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""


def to_beginning(tab: Tab) -> None:
    """As if the page had just been opened and nothing were focused yet."""
    tab.page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")


def stops(tab: Tab, most: int = 60) -> list[str]:
    """What Tab leads to from the page's beginning; each must be seen to be focused."""
    to_beginning(tab)
    found: list[str] = []
    for _ in range(most):
        tab.page.keyboard.press("Tab")
        name, is_visible = tab.page.evaluate(FOCUSED)
        if name in found[:1] or tab.page.evaluate("document.activeElement === document.body"):
            break
        assert is_visible, f"{name} is focused, and nothing shows it"
        found.append(name)
    return found


def test_the_keyboard_leads_everywhere_in_the_order_of_reading(tab: Tab, server: PageServer) -> None:
    server.say(Said("text\n\n```py\ncode\n```", reasoning="hm"))
    tab.send("hello")
    assert stops(tab) == [
        *("Skip to the message", "new-chat", "open-chats", "open-settings", "toggle-machine"),
        *("Copy", "Edit", "Reasoning", "Copy", "code", "Copy", "Write again"),
        *("message", "send", "close-machine", "pass-number", "tint"),
    ]


def test_a_whole_conversation_without_a_mouse(tab: Tab, server: PageServer) -> None:
    server.say(Said("one two three four five", holds_after=1), Said("again"), Said("edited"))
    keyboard = tab.page.keyboard
    assert tab.page.evaluate("document.activeElement.id") == "message", "one can write at once"
    keyboard.type("first line")
    keyboard.press("Shift+Enter")
    keyboard.type("second line")
    keyboard.press("Enter")
    tab.wait_for_text("one")
    keyboard.press("Escape")
    tab.wait_for_end()
    assert server.asked[0]["messages"][0]["content"] == "first line\nsecond line"
    server.go_on.set()
    keyboard.press("Shift+Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Write again"
    keyboard.press("Enter")
    tab.wait_for_text("again")
    tab.wait_for_end()
    assert tab.page.evaluate("document.activeElement.id") == "message"
    tab.mine.get_by_role("button", name="Edit").focus()
    keyboard.press("Enter")
    keyboard.press("End")
    keyboard.type("!")
    keyboard.press("Enter")
    tab.wait_for_text("edited")
    tab.wait_for_end()
    assert server.asked[2]["messages"][0]["content"] == "first line\nsecond line!"
    assert tab.page.evaluate("document.activeElement.id") == "message"


def test_skipping_leads_to_the_message(tab: Tab) -> None:
    to_beginning(tab)
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "message"


def test_dialogs_hold_the_keyboard_and_give_it_back(tab: Tab, server: PageServer) -> None:
    server.say(Said("one two three four", holds_after=1))
    tab.send("count", waits=False)
    tab.wait_for_text("one")
    tab.page.locator("#open-settings").focus()
    tab.page.keyboard.press("Enter")
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("document.activeElement.id") == "open-settings"
    assert tab.page.locator("#stop").is_visible(), "Escape closed the dialog, and stopped nothing"


def test_enter_that_ends_a_composition_does_not_send(tab: Tab, server: PageServer) -> None:
    tab.box.fill("にほん")
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    assert tab.page.evaluate(f"document.querySelector('#message').dispatchEvent({event})"), "not prevented"
    assert tab.box.input_value() == "にほん" and not server.asked


def test_an_empty_message_is_not_sent(tab: Tab, server: PageServer) -> None:
    for text in ("", "  \n "):
        tab.box.fill(text)
        tab.box.press("Enter")
    assert not server.asked and tab.texts() == []


def test_replies_are_said_sentence_by_sentence(tab: Tab, server: PageServer) -> None:
    server.say(Said("It is blue. It was blue yesterday. And tomorrow", holds_after=4, deepest=1))
    tab.send("sky?", waits=False)
    tab.page.wait_for_function("() => announcements.textContent.includes('It is blue.')")
    region = tab.page.locator("#announcements")
    assert region.get_attribute("aria-live") == "polite"
    assert "tomorrow" not in region.inner_text()
    server.go_on.set()
    tab.wait_for_end()
    said = region.locator("p").all_inner_texts()
    assert said[-2:] == ["And tomorrow", "Reply complete."]
    assert " ".join(said[:-1]) == "It is blue. It was blue yesterday. And tomorrow"


def test_everything_has_a_name_and_a_role(tab: Tab, server: PageServer) -> None:
    server.say(Said("a\n\n| b |\n|--|\n| c |", reasoning="hm"))
    tab.send("hello")
    kinds = "button, input, textarea, meter, progress, dialog, aside, nav, svg, pre, .table"
    unnamed = """(kinds) => Array.from(document.querySelectorAll(kinds))
    .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length
      || document.getElementById(node.getAttribute("aria-labelledby"))))
    .map((node) => node.outerHTML)"""
    assert tab.page.evaluate(unnamed, kinds) == []
    headings = tab.page.get_by_role("heading").all_inner_texts()
    assert headings[:3] == ["sequoia", "You", "Reply"]
    for role in ("banner", "main", "complementary", "navigation", "log"):
        assert tab.page.get_by_role(role).count() == 1  # type: ignore[arg-type]
