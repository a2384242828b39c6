"""The table of papers is held to the code: what it names is there, what the code cites is in it."""

import ast
import collections
import functools
import pathlib
import re

import pytest

from tools import systems_table

ROOT = pathlib.Path(systems_table.ROOT)
CATALOGUE, BESIDE = systems_table.read()
PAPERS = CATALOGUE + BESIDE
HERE = [paper for paper in PAPERS if paper.files]
# Two digits of a year, two of a month, and five.
NUMBER = re.compile(r"\b\d{2}(?:0[1-9]|1[0-2])\.\d{5}\b")


def test_the_page_is_what_the_table_gives():
    assert systems_table.PAGE.read_text() == systems_table.page(), "run tools/systems_table.py"


def test_the_check_notices_an_old_page(monkeypatch, tmp_path):
    monkeypatch.setattr(systems_table, "PAGE", tmp_path / "systems.md")
    systems_table.PAGE.write_text("old")
    monkeypatch.setattr("sys.argv", ["systems_table.py", "--check"])
    with pytest.raises(SystemExit, match="systems_table.py"):
        systems_table.main()
    assert systems_table.PAGE.read_text() == "old"
    monkeypatch.setattr("sys.argv", ["systems_table.py"])
    systems_table.main()
    monkeypatch.setattr("sys.argv", ["systems_table.py", "--check"])
    systems_table.main()


def test_the_catalogue_is_whole_and_no_paper_is_in_the_table_twice():
    assert len(CATALOGUE) == 151
    for field in ("arxiv", "name"):
        counts = collections.Counter(getattr(paper, field) for paper in PAPERS)
        assert max(counts.values()) == 1, counts.most_common(1)


def test_rows_are_filled_in():
    for paper in PAPERS:
        assert NUMBER.fullmatch(paper.arxiv), paper
        assert paper.what and not paper.what.endswith("."), paper
        # What is here has tests; of what is not there is nothing more to say.
        assert bool(paper.files) == bool(paper.tests), paper
        assert paper.files or not (paper.shows or paper.differs or paper.missing), paper


def test_what_is_beside_the_catalogue_is_here():
    assert all(paper.files for paper in BESIDE)


def test_files_exist():
    for path in {path for paper in HERE for path in paper.files}:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_tests_exist():
    for test in {test for paper in HERE for test in paper.tests}:
        path, _, name = test.partition("::")
        assert re.fullmatch(r"tests/([a-z_]+/)*test_\w+\.py", path), test
        assert name in systems_table.functions(path), test


@functools.cache
def docstrings(path):
    """All docstrings of a file, joined."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(systems_table.tree(path)) if isinstance(node, kinds)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def test_code_cites_its_source():
    for paper in HERE:
        sources = [docstrings(path) for path in paper.files if path.endswith(".py")]
        cited = NUMBER.findall("\n".join(sources))
        assert paper.arxiv in cited, f"no docstring of {paper.files} cites {paper.name}"


def test_every_paper_that_the_code_cites_is_in_the_table():
    known = {paper.arxiv for paper in HERE}
    for path in sorted((ROOT / "dit_jax").rglob("*.py")):
        unknown = set(NUMBER.findall(path.read_text())) - known
        assert not unknown, f"{path.relative_to(ROOT)} cites {sorted(unknown)}"


@functools.cache
def anchors(page):
    """The names that a page's headings have in links."""
    lines = [line.lstrip("#") for line in page.read_text().splitlines() if line.startswith("#")]
    words = [re.sub(r"[^\w\- ]", "", line.strip().lower()) for line in lines]
    return {line.replace(" ", "-") for line in words}


def test_links_lead_to_headings():
    links = re.findall(r"\]\(([^)#:]+)#([^)]*)\)", systems_table.page())
    assert links
    for page, anchor in links:
        assert anchor in anchors(ROOT / "docs" / page), f"{page}#{anchor}"


@pytest.mark.parametrize(
    ("test", "slow"),
    [
        ("tests/latents/vae/test_autoencoder.py::test_equals_diffusers", False),
        ("tests/latents/vae/test_autoencoder.py::test_equals_diffusers_at_full_size", True),
        # One case of it is slow, and the module is marked for something else.
        ("tests/training/test_recipes.py::test_a_recipe_gives_the_losses_of_one_device", False),
        ("tests/parallel/test_hosts.py::test_losses_are_those_of_one_process", False),
    ],
)
def test_slow_tests_are_told(test, slow):
    assert systems_table.is_slow(test) == slow


def test_slow_tests_are_said_to_be_slow():
    assert "*equals diffusers, equals diffusers at full size (slow)*" in systems_table.page()
