"""Markdown as the page shows it, as HTML that it makes itself."""

from typing import TYPE_CHECKING

import pytest

from tests.fakes.page.page_server import PageServer
from tests.fakes.page.page_tab import Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCRIPT = """async (text) => {
  const { renderInto } = await import("/page/text/render.js");
  const node = document.createElement("div");
  renderInto(node, text);
  for (const part of node.querySelectorAll("figcaption")) part.remove();
  for (const part of node.querySelectorAll("*")) {
    const others = part.getAttributeNames().filter((name) => !["href", "start", "class"].includes(name));
    for (const name of others) part.removeAttribute(name);
    if (!part.className) part.removeAttribute("class");
  }
  return node.innerHTML;
}"""
CASES = {
    "plain text": "<p>plain text</p>",
    "two\nlines\n\nand  another\n": "<p>two\nlines</p><p>and  another</p>",
    "def f():\n    return 1": "<p>def f():\n    return 1</p>",
    "# One\n### Three ###\n####### no": "<h3>One</h3><h5>Three</h5><p>####### no</p>",
    "#hashtag": "<p>#hashtag</p>",
    "**bold** and *slanted* and ***both***": (
        "<p><strong>bold</strong> and <em>slanted</em> and <em><strong>both</strong></em></p>"
    ),
    "__bold__ _slanted_ ~~gone~~": "<p><strong>bold</strong> <em>slanted</em> <s>gone</s></p>",
    "snake_case_name 2*3*4 2 * 3 * 4 *": "<p>snake_case_name 2*3*4 2 * 3 * 4 *</p>",
    "f(*args, **kwargs)": "<p>f(*args, **kwargs)</p>",
    "这是**重点。**内容": "<p>这是<strong>重点。</strong>内容</p>",
    "**open *and* never closed": "<p>**open <em>and</em> never closed</p>",
    "`code` ``a ` b`` `` ` `` `open": "<p><code>code</code> <code>a ` b</code> <code>`</code> `open</p>",
    r"\*no\* \\ C:\dir \( a_1*b_2 \) $$x*y*z$$": (
        r'<p>*no* \ C:\dir <span class="formula">\( a_1*b_2 \)</span> <span class="formula">$$x*y*z$$</span></p>'
    ),
    "costs $5 and $6": "<p>costs $5 and $6</p>",
    "[a *b*](https://x.example)": (
        '<p><a href="https://x.example/">a <em>b</em></a><span class="host"> (x.example)</span></p>'
    ),
    "[x.example](https://x.example 'no') [a][b] [ ](d)": (
        "<p>[x.example](<a href=\"https://x.example/\">https://x.example</a> 'no') [a][b] [ ](d)</p>"
    ),
    'see (https://x.example/a). [t](https://x.example/t "title")': (
        '<p>see (<a href="https://x.example/a">https://x.example/a</a>). '
        '<a href="https://x.example/t">t</a><span class="host"> (x.example)</span></p>'
    ),
    "&lt;b&gt; &amp;amp; a<br>b": "<p>&lt;b&gt; &amp;amp; a\nb</p>",
    "- a\n- b\n  - c\n  - d\n- e": (
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li><li><p>d</p></li></ul></li><li><p>e</p></li></ul>"
    ),
    "3. c\n4. d\n\n5. e": '<ol start="3"><li><p>c</p></li><li><p>d</p></li><li><p>e</p></li></ol>',
    "1. a\n   - x\n2. b\n\n   more": (
        "<ol><li><p>a</p><ul><li><p>x</p></li></ul></li><li><p>b</p><p>more</p></li></ol>"
    ),
    "1. a\n  - under two spaces\n\t- under a tab": (
        "<ol><li><p>a</p><ul><li><p>under two spaces</p></li><li><p>under a tab</p></li></ul></li></ol>"
    ),
    "- a\nlazy\n\nafter": "<ul><li><p>a\nlazy</p></li></ul><p>after</p>",
    "- a\n* b": "<ul><li><p>a</p></li></ul><ul><li><p>b</p></li></ul>",
    "in 1984. no list\n1984. nor here\n- but here": (
        "<p>in 1984. no list\n1984. nor here</p><ul><li><p>but here</p></li></ul>"
    ),
    "- [x] done\n- [ ] not": (
        '<ul><li class="has-task"><span class="task">☑ </span><p>done</p></li>'
        '<li class="has-task"><span class="task">☐ </span><p>not</p></li></ul>'
    ),
    "- a\n  ```py\n  x = 1\n    y\n  ```\n- b": (
        '<ul><li><p>a</p><figure class="code"><pre><code>x = 1\n  y</code></pre></figure></li><li><p>b</p></li></ul>'
    ),
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li><p>b</p></li></ul></blockquote><p>c</p>",
    "a\n\n---\n\n* * *": "<p>a</p><hr><hr>",
    "```\n# no *heading*\n\n```\nafter": (
        '<figure class="code"><pre><code># no *heading*\n</code></pre></figure><p>after</p>'
    ),
    "~~~js\n```\n~~~": '<figure class="code"><pre><code>```</code></pre></figure>',
    "text\n```\nnot closed": '<p>text</p><figure class="code"><pre><code>not closed</code></pre></figure>',
    "| a | b |\n|:--|--:|\n| `c\\|d` | **e** |\n| f |\n\ng": (
        '<div class="table"><table><thead><tr><th class="align-start">a</th><th class="align-end">b</th></tr></thead>'
        '<tbody><tr><td class="align-start"><code>c|d</code></td><td class="align-end"><strong>e</strong></td></tr>'
        '<tr><td class="align-start">f</td><td class="align-end"></td></tr></tbody></table></div><p>g</p>'
    ),
    "a | b, no table\n- c": "<p>a | b, no table</p><ul><li><p>c</p></li></ul>",
}


@pytest.fixture(scope="module")
def cases(browser: "Browser", shared_server: PageServer) -> dict[str, str]:
    """The HTML of every case, from one tab."""
    context = browser.new_context()
    tab = Tab(context, shared_server.url)
    found = {text: tab.page.evaluate(SCRIPT, text) for text in CASES}
    context.close()
    return found


@pytest.mark.parametrize("text", CASES, ids=lambda text: text[:24])
def test_markdown_is_shown_as_people_mean_it(cases: dict[str, str], text: str) -> None:
    assert cases[text] == CASES[text]


def test_a_growing_text_ends_as_it_would_at_once(tab: Tab) -> None:
    """Drawn again after every letter, blocks that were kept included."""
    script = """async (texts) => {
      const { renderInto } = await import("/page/text/render.js");
      const differ = [];
      for (const text of texts) {
        const [grown, whole] = [document.createElement("div"), document.createElement("div")];
        for (let end = 1; end <= text.length; end += 1) renderInto(grown, text.slice(0, end));
        renderInto(whole, text);
        if (grown.innerHTML !== whole.innerHTML) differ.push([grown.innerHTML, whole.innerHTML]);
      }
      return differ;
    }"""
    assert tab.page.evaluate(script, [*CASES, "\n\n".join(CASES)]) == []


def test_blocks_that_have_not_changed_keep_their_elements(tab: Tab) -> None:
    script = """async () => {
      const { renderInto } = await import("/page/text/render.js");
      const node = document.createElement("div");
      renderInto(node, "one\\n\\n```\\ncode");
      const [first, second] = node.children;
      renderInto(node, "one\\n\\n```\\ncode\\nmore\\n```\\n\\nlast");
      return [node.children[0] === first, node.children[1] === second, node.children.length];
    }"""
    assert tab.page.evaluate(script) == [True, True, 3]
