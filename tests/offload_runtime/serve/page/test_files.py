"""The page's files as they are served: nothing of them comes from elsewhere, nothing in them can run text."""

import re
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from offload_runtime.serve.pages import PAGE, POLICY, page_routes
from tests.fakes.page.page_server import PageServer

FILES = sorted(file for file in PAGE.rglob("*") if file.is_file())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
TEXT_AS_HTML = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    r"|\beval\b|new Function|setAttribute\(\"on|javascript:"
)
IMPORT = re.compile(r'from "(\.[^"]+)"')


def get(server: PageServer, path: str, **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(server.url.rstrip("/") + path, headers=headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_served_under_the_policy(server: PageServer, file: Path) -> None:
    name = file.relative_to(PAGE).as_posix()
    status, headers, content = get(server, "/" if name == "index.html" else f"/page/{name}")
    assert (status, content) == (200, file.read_bytes())
    assert headers["Content-Security-Policy"] == POLICY and headers["X-Content-Type-Options"] == "nosniff"
    kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}[file.suffix]
    assert headers["Content-Type"].startswith(kind)


def test_the_policy_allows_this_servers_files_alone() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert rules.pop("default-src") == "'none'"
    assert set(rules.values()) == {"'self'", "'none'"}
    assert {rules[name] for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}


def test_a_file_that_the_browser_has_is_not_sent_again(server: PageServer) -> None:
    _, headers, _ = get(server, "/page/main.js")
    assert get(server, "/page/main.js", **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
    assert get(server, "/page/dom.js", **{"If-None-Match": headers["ETag"]})[0] == 200
    assert headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/page/../pages.py", "/page/%2e%2e/pages.py", "/page/", "/page//main.js", "/page/style"]
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    assert get(server, path)[0] == 404
    assert {route.path for route in page_routes()} == {"/"} | {
        f"/page/{file.relative_to(PAGE).as_posix()}" for file in FILES if file.name != "index.html"
    }


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_can_turn_text_into_html_or_code(file: Path) -> None:
    assert not TEXT_AS_HTML.search(file.read_text())


def test_the_document_has_no_script_style_or_handler_of_its_own() -> None:
    document = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", document)
    assert re.findall(r"<script[^>]*>(.*?)</script>", document, re.S) == [""]
    assert all(address.startswith(("/page/", "#")) for address in re.findall(r'(?:src|href)="([^"]*)"', document))


def test_every_file_is_used_and_every_used_file_is_there() -> None:
    document = (PAGE / "index.html").read_text()
    used = {PAGE / address for address in re.findall(r'"/page/([^"]+)"', document)} | {PAGE / "index.html"}
    for file in SCRIPTS:
        used |= {(file.parent / name).resolve() for name in IMPORT.findall(file.read_text())}
    assert used == set(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_and_folders_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400 and len([*file.parent.glob("*.*")]) <= 15
    assert max(map(len, file.read_text().splitlines())) <= 120 or file.suffix in (".html", ".svg")


def test_every_field_has_a_label_and_every_reference_leads_somewhere() -> None:
    document = (PAGE / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', document)
    assert len(ids) == len(set(ids))
    pointed = re.findall(r'(?:for|aria-labelledby|aria-controls|aria-describedby)="([^"]+)"', document)
    assert {name for names in pointed for name in names.split()} <= set(ids)
    fields = re.findall(r"<(?:input|textarea|meter|progress)[^>]*>", document)
    named = [field for field in fields if re.search(r'id="([^"]+)"', field)[1] in pointed]  # type: ignore[index]
    assert [field for field in fields if field not in named] == [
        '<input type="checkbox" id="tint">'
    ]  # within its label
    scripts = "".join(file.read_text() for file in SCRIPTS)
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= set(ids)
