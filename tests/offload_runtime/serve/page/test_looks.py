"""What can be measured of how the page looks: widths, contrasts, dark mode, rest where rest is asked for."""

from collections.abc import Callable

import pytest

from tests.fakes.page.page_server import PageServer, Said
from tests.fakes.page.page_tab import Tab

WIDE = (
    f"# {'Heading' * 20}\n\nhttps://example.com/{'a' * 300}\n\n`{'code' * 50}`\n\n```\n{'y' * 400}\n```\n\n"
    f"|{'a' * 40}|{'b' * 40}|{'c' * 40}|\n|--|--|--|\n|{'d' * 90}|e|f|\n\n"
    f"- {'item' * 40}\n  - {'under' * 40}\n    - {'deeper' * 40}\n\n> {'quote' * 40}\n\n{'word ' * 100}"
)
COLOURS = """() => {
  const probe = document.body.appendChild(document.createElement("i"));
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  };
  const names = ["ground", "raised", "sunken", "mine", "ink", "soft", "accent", "accent-ink", "danger", "danger-ground",
    "edge", "lit", ...Array.from({length: 8}, (_, index) => [`depth-${index + 1}`, `path-${index + 1}`]).flat()];
  return Object.fromEntries(names.map((name) => [name, read(name)]));
}"""
FITS = "({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth"
TEXT, SHAPES = 4.5, 3.0  # WCAG 2.2, AA: contrast of text, and of what has to be seen to be used
READ_ON = {
    "ink": ("ground", "raised", "sunken", "mine", *(f"depth-{depth}" for depth in range(1, 9))),
    "soft": ("ground", "raised", "sunken"),
    "accent": ("ground", "raised", "mine"),
    "accent-ink": ("accent",),
    "danger": ("ground", "raised", "danger-ground"),
}
SEEN_ON = {"edge": ("ground", "raised"), "lit": ("sunken",), **{f"path-{depth}": ("sunken",) for depth in range(1, 9)}}


def luminance(colour: list[float]) -> float:
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(first: list[float], second: list[float]) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes(open_tab: Callable[..., Tab], scheme: str) -> None:
    colours = open_tab(color_scheme=scheme).page.evaluate(COLOURS)
    assert (luminance(colours["ground"]) < 0.1) == (scheme == "dark")
    for least, pairs in ((TEXT, READ_ON), (SHAPES, SEEN_ON)):
        found = {
            (name, ground): round(contrast(colours[name], colours[ground]), 2)
            for name, grounds in pairs.items()
            for ground in grounds
        }
        assert not {pair: value for pair, value in found.items() if value < least}


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_nothing_is_wider_than_the_screen(open_tab: Callable[..., Tab], server: PageServer, width: int) -> None:
    server.say(Said(WIDE, reasoning=WIDE, tree_nodes=500, deepest=9))
    tab = open_tab(width=width, height=640)
    tab.send(f"{'x' * 200} {'words ' * 30}")
    tab.page.locator(".assistant summary").click()
    wide = """Array.from(document.querySelectorAll("body *")).filter((node) => {
      const box = node.getBoundingClientRect();
      return box.right > innerWidth + 1 && !node.closest("pre, .table, .visually-hidden, dialog");
    }).map((node) => node.outerHTML.slice(0, 80))"""
    for opener in (None, "#toggle-machine"):
        if opener and not tab.page.locator("#machine").is_visible():
            tab.page.click(opener)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        assert tab.page.evaluate(wide) == []
        assert tab.page.evaluate(f"[scroller, machine].every({FITS})")
    if width < 960:
        tab.page.click("#close-machine")
    for opener in ("#open-settings", "#open-chats"):
        tab.page.click(opener)
        assert tab.page.evaluate("document.querySelector('dialog[open]').getBoundingClientRect().width") <= width
        assert tab.page.evaluate(f"[document.querySelector('dialog[open]')].every({FITS})")
        tab.page.keyboard.press("Escape")


def test_buttons_are_large_enough_for_fingers(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(width=360, height=640)
    tab.send("hello")
    sizes = tab.page.evaluate(
        "Array.from(document.querySelectorAll('button'), (node) => node.getBoundingClientRect())"
        ".filter((box) => box.width).map((box) => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 24  # WCAG 2.2, target size (minimum)


def test_nothing_moves_for_those_who_want_it_so(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.say(Said("one two three four five six seven", holds_after=1))
    blinks = "getComputedStyle(document.querySelector('.writing > .text > p'), '::after').animationName"
    for motion, name in (("no-preference", "blink"), ("reduce", "none")):
        tab = open_tab(reduced_motion=motion)
        tab.send("count", waits=False)
        tab.wait_for_text("one")
        assert tab.page.evaluate(blinks) == name
        tab.page.keyboard.press("Escape")


def test_the_end_is_followed_unless_one_has_scrolled_up(open_tab: Callable[..., Tab], server: PageServer) -> None:
    text = "line\n\n" * 60
    server.say(Said(text, holds_after=12), Said(text))
    tab = open_tab(height=500)
    at_end = "scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 3"
    tab.send("go", waits=False)
    tab.wait_for_text("line")
    tab.page.wait_for_function(f"() => scroller.scrollTop > 50 && {at_end}")
    tab.page.evaluate("scroller.scrollTop = 20")
    tab.page.wait_for_selector("#to-end:visible")
    server.go_on.set()
    tab.wait_for_end()
    assert tab.page.evaluate("scroller.scrollTop") == 20
    tab.page.click("#to-end")
    tab.page.wait_for_function(f"() => {at_end}")
    assert not tab.page.locator("#to-end").is_visible()
