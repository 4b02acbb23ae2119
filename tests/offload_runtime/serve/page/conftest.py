"""The page in headless Chromium, where there is one: `apt install chromium` and `pip install playwright`."""

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.page.page_server import PageServer
from tests.fakes.page.page_tab import Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright: pip install it")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("the page is tested in Chromium, and there is none: apt install chromium")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, since tests may run as root; it only opens pages of ours.
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[PageServer]:
    with PageServer() as server:
        yield server


@pytest.fixture
def server(shared_server: PageServer) -> PageServer:
    """A server that has been asked nothing."""
    shared_server.reset()
    return shared_server


@pytest.fixture
def open_tab(browser: "Browser", server: PageServer) -> Iterator[Callable[..., Tab]]:
    """Opens the page in a browser without a past; fails at the end if a page had errors or broke its policy."""
    contexts = []
    tabs: list[Tab] = []

    def open_tab(width: int = 1200, height: int = 800, beside: Tab | None = None, **options: Any) -> Tab:
        if beside is None:
            size = {"width": width, "height": height}
            contexts.append(
                browser.new_context(viewport=size, permissions=["clipboard-read", "clipboard-write"], **options)
            )
        tabs.append(Tab(beside.page.context if beside else contexts[-1], server.url))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        server.go_on.set()
        assert not tab.faults(), tab.faults()
    for context in contexts:
        context.close()


@pytest.fixture
def tab(open_tab: Callable[..., Tab]) -> Tab:
    return open_tab()
