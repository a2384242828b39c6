"""Writes docs/systems.md, the page of papers, from the table docs/systems.toml.

    python tools/systems_table.py [--check]

The table says of each paper what it is, where it is and which tests decide that it works. Tests are
shown by their names, and as slow where they are marked so. tests/docs/test_systems.py holds the
table to the code.
"""

import argparse
import ast
import collections
import dataclasses
import functools
import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "docs" / "systems.toml"
PAGE = ROOT / "docs" / "systems.md"

# Headings of the page, in order.
KINDS = (
    "Backbones",
    "Layers",
    "Token mixers",
    "Experts",
    "Latent spaces and encoders",
    "Losses of decoders",
    "Processes, samplers and guidance",
    "Training signals",
    "Distillation",
    "Acceleration of sampling",
    "Pruning and adaptive depth",
    "Quantisation",
    "Scaling",
    "Parallelism",
    "Text to image",
    "Control and adapters",
    "In-context generation",
    "Editing and steering without training",
    "Video",
    "Audio",
    "Three dimensions",
    "Motion and time series",
    "Language and discrete diffusion",
    "Metrics and data",
    "Analysis and benchmarks",
    "Other",
)

HEAD = """\
# Papers

Which papers are in this library, where, and what shows that they work. The catalogue is {total}
papers on diffusion transformers and what is around them: **{whole} are implemented, {part} in part,
{none} not yet**. Besides, {beside} papers that the library builds on are here, in whole or in part.

Implemented means that the paper's mechanism is here, and that the tests named decide whether it
works. It does not mean that the paper's results were reproduced, which takes more hardware than was
at hand; what was trained and measured is in [Results](results.md), and linked here. Where something
differs from a paper, or is this library's own reading of it, that is said.

Files are in `dit_jax/` unless they begin otherwise, tests in `tests/`. This page is written by
`python tools/systems_table.py` from `docs/systems.toml`, and tests hold that table to the code.
"""


@dataclasses.dataclass(frozen=True)
class Paper:
    """A row of the table, whose comment says what the fields are."""

    name: str
    arxiv: str
    kind: str
    what: str
    files: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    shows: str = ""
    differs: str = ""
    missing: str = ""


def read() -> tuple[list[Paper], list[Paper]]:
    """Returns the papers of the catalogue, and those beside it."""
    with open(TABLE, "rb") as file:
        table = tomllib.load(file)
    for row in table["catalogue"] + table["beside"]:
        if row["kind"] not in KINDS:
            sys.exit(f"{row['name']} is of no kind that there is: {row['kind']}")
    return tuple([Paper(**row) for row in table[name]] for name in ("catalogue", "beside"))


@functools.cache
def tree(path: str) -> ast.Module:
    """The syntax of a file of the repository."""
    return ast.parse((ROOT / path).read_text())


def functions(path: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a file by name."""
    found = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
    return {node.name: node for node in found if node.name.startswith("test_")}


def is_slow(test: str) -> bool:
    """Whether a test, as pytest names it, is left out of the quick ones."""
    path, _, name = test.partition("::")
    if name not in functions(path):
        sys.exit(f"there is no test {test}")
    marks = list(functions(path)[name].decorator_list)
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks += node.value.elts if isinstance(node.value, ast.List) else [node.value]
    # A mark within a parameter is of that case alone.
    return any(ast.unparse(mark) == "pytest.mark.slow" for mark in marks)


def tests_of(paper: Paper) -> str:
    """The names of a paper's tests as words, file by file."""
    by_file = collections.defaultdict(list)
    for test in paper.tests:
        path, _, name = test.partition("::")
        words = name.removeprefix("test_").replace("_", " ")
        by_file[path.removeprefix("tests/")].append(words + " (slow)" * is_slow(test))
    return "; ".join(f"`{path}`: *{', '.join(names)}*" for path, names in by_file.items())


def line(paper: Paper) -> str:
    """What a paper is, for the list of those that are not here yet."""
    number = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
    return f"- **{paper.name}** ({number}): {paper.what}."


def entry(paper: Paper) -> str:
    """What a paper is, where, and what shows it."""
    files = ", ".join(f"`{path.removeprefix('dit_jax/')}`" for path in paper.files)
    lines = [line(paper), f"    - Files: {files}", f"    - Tests: {tests_of(paper)}"]
    labels = {"Shown by": paper.shows, "Differs": paper.differs, "Not here": paper.missing}
    lines += [f"    - {label}: {text}" for label, text in labels.items() if text]
    return "\n".join(lines)


def section(title: str, papers: list[Paper], show=entry) -> str:
    """A part of the page: its papers under the headings of their kinds."""
    parts = [f"## {title}"]
    for kind in KINDS:
        shown = [show(paper) for paper in papers if paper.kind == kind]
        if shown:
            parts += [f"### {kind}", "\n".join(shown)]
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The whole page."""
    catalogue, beside = read()
    whole = [paper for paper in catalogue if paper.files and not paper.missing]
    part = [paper for paper in catalogue if paper.files and paper.missing]
    none = [paper for paper in catalogue if not paper.files]
    counts = {"total": catalogue, "whole": whole, "part": part, "none": none, "beside": beside}
    parts = [
        HEAD.format(**{name: len(papers) for name, papers in counts.items()}),
        section("Implemented", whole),
        section("Implemented in part", part),
        section("Beside the catalogue", beside),
        section("Not yet", none, line),
    ]
    return "\n".join(parts)


def main() -> None:
    """Writes the page, or says that it is not what the table gives."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it is old")
    options = parser.parse_args()
    if not options.check:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/systems.md is not what docs/systems.toml gives: run tools/systems_table.py")


if __name__ == "__main__":
    main()
