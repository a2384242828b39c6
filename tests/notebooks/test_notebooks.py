"""Every notebook runs from top to bottom, in small and as it is, and is kept without outputs."""

import ast
import json
import os
import pathlib
import re
import sys

import pytest

from tests.notebooks.table import NOTEBOOKS, Needs

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The same in all notebooks, but for the extras of a notebook that needs some.
INSTALL = """\
# On Colab and Kaggle this installs the library; in a checkout it takes the checkout.
import importlib.util
import pathlib

if importlib.util.find_spec("dit_jax") is None:
    source = ".." if pathlib.Path("../pyproject.toml").exists() else "dit_jax"
    %pip install -q {source}"""
EXTRAS = re.compile(r'"(\{source\})\[[a-z]+(?:,[a-z]+)*\]"')

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: pathlib.Path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def parameters_cell(notebook) -> int:
    """The number of the cell tagged `parameters`."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    (found,) = [number for number, of_cell in enumerate(tags) if "parameters" in of_cell]
    return found


def assigned(source: str) -> set[str]:
    """Names that a cell assigns, on whatever condition."""
    nodes = ast.walk(ast.parse(source))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def run(notebook, folder: pathlib.Path, monkeypatch) -> None:
    """Executes a notebook in `folder`, as a user of this interpreter and checkout would."""
    kernel = folder / ".jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    # Written here, for another environment's kernel may go by the same name.
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / ".jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLA_FLAGS")  # One device: the tests' eight are not a user's.
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()


def pictures(notebook) -> int:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return sum("image/png" in output.get("data", {}) for output in outputs)


def needs_of(path: pathlib.Path) -> Needs:
    """The notebook's row; skips the test where a module is missing."""
    needs = NOTEBOOKS[path.stem]
    for module in needs.modules:
        pytest.importorskip(module)
    return needs


@each_notebook
def test_in_small(path, tmp_path, monkeypatch):
    needs = needs_of(path)
    notebook = read(path)
    constants = "\n".join(f"{name} = {value!r}" for name, value in needs.quick.items())
    place = parameters_cell(notebook) + 1
    notebook.cells.insert(place, nbformat.v4.new_code_cell(constants))
    needs.prepare(tmp_path)
    run(notebook, tmp_path, monkeypatch)
    assert pictures(notebook) >= needs.pictures


@pytest.mark.slow
@each_notebook
def test_as_it_is(path, tmp_path, monkeypatch):
    needs = needs_of(path)
    notebook = read(path)
    run(notebook, tmp_path, monkeypatch)
    assert pictures(notebook) >= needs.pictures


@each_notebook
def test_is_a_valid_notebook_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


@each_notebook
def test_begins_as_all_do(path):
    notebook = read(path)
    title, install = notebook.cells[:2]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert EXTRAS.sub(r"\1", install.source) == INSTALL


@each_notebook
def test_quick_constants_are_parameters(path):
    notebook = read(path)
    known = assigned(notebook.cells[parameters_cell(notebook)].source)
    assert NOTEBOOKS[path.stem].quick.keys() <= known
    assert "RUNS" in known


def test_the_table_is_that_of_the_notebooks():
    assert NOTEBOOKS.keys() == {path.stem for path in PATHS}


@each_notebook
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in targets if not (path.parent / link.partition("#")[0]).exists()]
    assert missing == []
