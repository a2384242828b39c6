"""The site builds without a warning, its links resolve, and it asks no other host for anything."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a browser fetches by itself, as against what a reader may click.
FETCHED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}

pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """What a page links to, what it fetches, and what can be linked to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.fetched, self.anchors, self.classes = set(), set(), set(), set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")}
        self.classes |= set((attrs.get("class") or "").split())
        if tag == "a" and attrs.get("href"):
            self.links.add(attrs["href"])
        if attrs.get(FETCHED.get(tag)):
            self.fetched.add(attrs[FETCHED[tag]])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    found = site.rglob("*.html")
    return {path: Page(path.read_text(encoding="utf-8")) for path in found if path.stem != "404"}


def split(address: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.unquote(parts.path), urllib.parse.unquote(parts.fragment)


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"[a-z]+:|//", address))


def test_links_and_anchors_resolve(pages):
    broken = []
    for path, page in pages.items():
        for address in page.links | page.fetched:
            if is_elsewhere(address):
                continue
            name, anchor = split(address)
            target = (path.parent / name).resolve() if name else path
            there = target.is_file() and (
                not anchor or target not in pages or anchor in pages[target].anchors
            )
            if not there:
                broken.append(f"{path.name}: {address}")
    assert not broken


def test_no_page_asks_another_host(site, pages):
    asked = {a for page in pages.values() for a in page.fetched if is_elsewhere(a)}
    assert not {address for address in asked if not address.startswith("data:")}
    # The theme's script fetches Mermaid from a host where a page has such a diagram.
    assert not any("mermaid" in page.classes for page in pages.values())
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text())


def test_files_of_the_repository_are_pages(pages):
    by_name = {str(path): page for path, page in pages.items()}
    (source,) = [name for name in by_name if name.endswith("source/configs/digits.py.html")]
    assert "highlight" in by_name[source].classes
    (folder,) = [name for name in by_name if name.endswith("source/dit_jax/attention/index.html")]
    assert "llsa.py.html" in by_name[folder].links


def test_reference_has_signatures_of_modules(pages):
    (page,) = [page for path, page in pages.items() if path.match("reference/models.html")]
    assert "dit_jax.models.DiT" in page.anchors
    # Linen makes dataclasses of modules; a static analysis knows that by our extension alone.
    assert "depth: int = 28" in re.sub(r"\s+", " ", page.text)
