"""The panel that shows what the machine does: figures, trees, the plan, tints."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from offload_runtime.serve.views import plan_view
from tests.fakes.page.page_server import DRAFT_SECONDS, PASS_SECONDS, PLAN, PageServer, Said, passes
from tests.fakes.page.page_tab import Tab
from tests.fakes.scripted_runtime import scripted_plan

TWENTY = " ".join(f"word{number}" for number in range(20))


def panel(tab: Tab) -> str:
    tab.page.wait_for_selector("#plan > *")
    return tab.page.locator("#machine").inner_text()


def test_the_figures_are_those_of_the_passes(tab: Tab, server: PageServer) -> None:
    said = Said(TWENTY)
    server.say(said)
    steps = [step for _, step in passes(said)]
    tab.send("go")
    seconds = DRAFT_SECONDS + PASS_SECONDS
    later = (20 - steps[0]["tokens"]) / ((len(steps) - 1) * seconds)
    assert tab.page.locator("#per-pass").inner_text() == f"{20 / len(steps):.1f}"
    assert tab.page.locator("#speed").inner_text() == f"{later:.1f}"
    share = PLAN.streamed_bytes / seconds / PLAN.link_bandwidth  # type: ignore[operator]
    assert tab.page.locator("#link").inner_text().startswith(f"{100 * share:.0f} %")
    assert tab.page.locator("#link-meter").evaluate("meter => meter.value") == pytest.approx(share)
    assert f"20 tokens · {later:.1f} tokens/s" in tab.replies.inner_text()


def test_the_tree_of_the_last_pass_is_drawn_and_earlier_ones_can_be_looked_at(tab: Tab, server: PageServer) -> None:
    said = Said(TWENTY, tree_nodes=40)
    server.say(said)
    steps = [step for _, step in passes(said)]
    tab.send("go")
    for number in (len(steps), 1):
        if number == 1:
            tab.page.locator("#pass-number").focus()
            tab.page.keyboard.press("Home")
            tab.page.wait_for_selector("#tree-words:text('Pass 1:')")
        accepted = steps[number - 1]["accepted"]
        words = tab.page.locator("#tree-words").inner_text()
        assert words.startswith(f"Pass {number}: 39 drafted tokens")
        assert words.endswith(f"{accepted or 'none'} accepted.")
        assert tab.page.locator("#tree .lit").count() == accepted
        assert tab.page.locator("#tree .nodes").get_attribute("d").count("h0") == 40  # type: ignore[union-attr]
        assert tab.page.locator("#tree svg").get_attribute("aria-label") in words  # type: ignore[operator]


def test_the_accepted_path_is_lit_where_the_tree_has_it(tab: Tab) -> None:
    script = """async (tree) => {
      const { drawTree } = await import("/page/machine/tree.js");
      const drawing = drawTree(tree);
      return drawing && Array.from(drawing.querySelectorAll(".lit"), (node) => node.getAttribute("d"));
    }"""
    lit = tab.page.evaluate(script, {"parents": [-1, 0, 0, 1, 1, 2, 4], "accepted": [1, 4, 6]})
    ends = [(path.split("C")[0], path.split(" ")[-2:]) for path in lit]
    assert len(lit) == 3 and all(f"M{' '.join(end)}" == begin for (_, end), (begin, _) in pairwise(ends))
    assert len(tab.page.evaluate(script, {"parents": [-1, 0, 0, 1], "accepted": [2, 3]})) == 1, "3 is no child of 2"
    assert tab.page.evaluate(script, {"parents": [-1, *range(3000)], "accepted": [*range(1, 3001)]}) is not None
    for broken in ([], [0], [-1, 1], [-1, 0, 5], [-1, -1], [-1, "0"], [-1, 0.5], None, "tree", [-1, *[0] * 30_000]):
        assert tab.page.evaluate(script, {"parents": broken, "accepted": [1]}) is None
    assert tab.page.evaluate(script, None) is None
    assert tab.page.evaluate(script, {"parents": [-1, 0], "accepted": "x"}) == []


def test_nodes_lie_over_the_middle_of_their_leaves(tab: Tab) -> None:
    script = 'async (parents) => (await import("/page/machine/layout.js")).layOut(parents)'
    found = tab.page.evaluate(script, [-1, 0, 0, 1, 1, 2, 0])
    assert found == {"x": [2, 1, 2.5, 0.5, 1.5, 2.5, 3.5], "depth": [0, 1, 1, 2, 2, 2, 1], "leaves": 4, "levels": 2}


def test_the_plan_is_a_table(tab: Tab) -> None:
    text = panel(tab)
    for item in PLAN.items:
        assert item.name in text
    for words in ("Llama-3-70B-int4", "Llama-3-8B", "35.6 GB", "Each pass streams 35.6 GB from memory.", "Budget"):
        assert words in text
    rows = tab.page.locator("table.plan tbody tr")
    assert rows.count() == len(PLAN.items)
    assert tab.page.locator("table.plan thead th").all_inner_texts() == ["What", "GPU", "RAM", "Disk"]


def test_a_plan_of_a_processor_has_no_column_for_a_gpu(open_tab: Callable[..., Tab], server: PageServer) -> None:
    server.plan = plan_view(scripted_plan())
    tab = open_tab()
    tab.send("hello")
    assert tab.page.locator("table.plan thead th").all_inner_texts() == ["What", "RAM", "Disk"]
    assert "not used, all in memory" in panel(tab)


@pytest.mark.parametrize("plan", [None, {}, {"items": "none"}], ids=["none", "empty", "odd"])
def test_a_server_without_a_plan_can_be_talked_to(
    open_tab: Callable[..., Tab], server: PageServer, plan: dict[str, object] | None
) -> None:
    server.plan = plan
    tab = open_tab()
    tab.send("hello")
    tab.shows("hello", "hello world")
    assert "The server tells no plan." in panel(tab)


def test_tokens_are_tinted_by_depth_when_asked_for(tab: Tab, server: PageServer) -> None:
    said = Said(TWENTY, deepest=10)
    server.say(said)
    tab.send("go")
    assert tab.page.locator(".message .token").count() == 0
    tab.page.check("#tint")
    tab.page.wait_for_selector(".message .token")
    wanted = [
        (piece, "token bonus" if depth == step["accepted"] else f"token depth-{min(depth + 1, 8)}")
        for _, step in passes(said)
        for depth, piece in enumerate(step["pieces"])
    ]
    found = "Array.from(document.querySelectorAll('.message .token'), (node) => [node.textContent, node.className])"
    assert tab.page.evaluate(found) == [list(token) for token in wanted]
    tab.shows("go", TWENTY)
    tab.reload()
    assert tab.page.evaluate(found) == [list(token) for token in wanted], "kept with the conversation"
    tab.page.uncheck("#tint")
    tab.page.wait_for_selector(".message .token", state="detached")
    tab.shows("go", TWENTY)


def test_tints_grow_with_the_reply(tab: Tab, server: PageServer) -> None:
    server.say(Said(TWENTY, holds_after=3))
    tab.page.check("#tint")
    tab.send("go", waits=False)
    tab.page.wait_for_selector(".message .token")
    server.go_on.set()
    tab.wait_for_end()
    tab.shows("go", TWENTY)
    assert tab.page.locator(".message .token").count() == 20


def test_the_progress_of_a_long_pass_is_shown(tab: Tab, server: PageServer) -> None:
    server.say(Said(TWENTY, holds_after=2))
    tab.send("go", waits=False)
    tab.page.wait_for_selector("#pass-progress:visible")
    assert re.search(r"run for \d\.\d of about 1\.[45] s", tab.page.locator("#pass-words").inner_text())
    tab.page.keyboard.press("Escape")
    tab.wait_for_end()
    assert not tab.page.locator("#pass-progress").is_visible()


def test_the_panel_stays_as_it_was_left(tab: Tab) -> None:
    tab.page.click("#toggle-machine")
    assert not tab.page.locator("#machine").is_visible()
    tab.reload()
    assert tab.page.locator("#toggle-machine").get_attribute("aria-expanded") == "false"
    tab.page.click("#toggle-machine")
    assert tab.page.locator("#machine").is_visible()


def test_on_a_small_screen_the_panel_comes_when_asked_for(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(width=360)
    assert not tab.page.locator("#machine").is_visible()
    tab.page.click("#toggle-machine")
    tab.page.locator("#close-machine").focus()
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#machine").is_visible()
    assert tab.page.evaluate("document.activeElement.id") == "toggle-machine"
