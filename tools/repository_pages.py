"""A hook of MkDocs: files of the repository that pages link to become pages of the site.

Pages under docs/ link to code, tests and configurations by relative paths (`../dit_jax/moe`), which
work where the repository is browsed. In the site each linked file is a page of its own under
`source/`, each linked folder a list of its files, and the links lead there.
"""

import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = "docs"
SOURCE = "source"
LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")
LANGUAGES = {
    ".ipynb": "json",
    ".json": "json",
    ".md": "markdown",
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".txt": "text",
    ".yaml": "yaml",
    "LICENSE": "text",
    "Makefile": "makefile",
}


def on_files(files, config):
    """Adds a page for every file and folder that a page links to, directly or through another."""
    waiting = [_repository_path(file.src_uri) for file in files.documentation_pages()]
    named = [page for page in _pages_of(config["nav"]) if page.startswith(f"{SOURCE}/")]
    waiting += [_repository_path(page) for page in named]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        text = _markdown(path)
        if not path.startswith(f"{DOCS}/"):
            file = File.generated(config, _page(path), content=text)
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
        links = LINK.finditer(text) if _has_links(path) else ()
        linked = {_target(path, match["path"]) for match in links}
        linked = {found for found in linked - seen - {None} if not found.startswith(f"{DOCS}/")}
        seen |= linked
        waiting += sorted(linked)
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links into the repository at the pages made of it."""
    origin = _repository_path(page.file.src_uri)

    def replaced(match):
        target = _target(origin, match["path"])
        if target is None:
            return match[0]
        place = posixpath.relpath(_page(target), posixpath.dirname(page.file.src_uri) or ".")
        return place + (match["anchor"] or "")

    return LINK.sub(replaced, markdown) if _has_links(origin) else markdown


def _pages_of(nav):
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in _pages_of(entry)]


def _repository_path(page):
    """What a page of the site is made of: a path in the repository."""
    if not page.startswith(f"{SOURCE}/"):
        return f"{DOCS}/{page}"
    path = page.removeprefix(f"{SOURCE}/")
    if path.endswith("index.md"):
        return path.removesuffix("index.md").rstrip("/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def _page(path):
    """The page of the site that a path in the repository becomes."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if (ROOT / path).is_dir():
        return f"{SOURCE}/{path}/index.md"
    return f"{SOURCE}/{path}" if path.endswith(".md") else f"{SOURCE}/{path}.md"


def _target(origin, link):
    """The path in the repository that a link leads to; None where that is no page."""
    folder = origin if (ROOT / origin).is_dir() else posixpath.dirname(origin)
    path = posixpath.normpath(posixpath.join(folder, link))
    if not link or path.startswith("..") or not (ROOT / path).exists():
        return None
    known = (ROOT / path).is_dir() or path.startswith(f"{DOCS}/") or _language(ROOT / path)
    return path if known and path != "." else None


def _language(path):
    return LANGUAGES.get(path.suffix or path.name)


def _has_links(path):
    return (ROOT / path).is_dir() or path.endswith((".md", ".ipynb"))


def _markdown(path):
    """A file or folder of the repository as Markdown."""
    place = ROOT / path
    if place.is_dir():
        return _folder(path, place)
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return text if path.startswith(f"{DOCS}/") else _unsearched(text)
    if place.suffix == ".ipynb":
        return _unsearched(_notebook(json.loads(text)))
    body = f"{_fence(text, _language(place))}\n"
    return _unsearched(f"# {place.name}\n\n`{path}`\n\n{body}")


def _folder(path, place):
    entries = [
        entry
        for entry in sorted(place.iterdir(), key=lambda entry: (entry.is_file(), entry.name))
        if not entry.name.startswith((".", "__pycache__"))
        and (entry.is_dir() or (_language(entry) and entry.stat().st_size))
    ]
    lines = [f"- [`{entry.name}{'/' * entry.is_dir()}`]({entry.name})" for entry in entries]
    return _unsearched(f"# {place.name}/\n\n`{path}/`\n\n" + "\n".join(lines) + "\n")


def _notebook(notebook):
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"])
    return "\n\n".join(_fence(text, "python") if kind == "code" else text for kind, text in cells)


def _fence(text, language):
    longest = max((len(ticks) for ticks in re.findall(r"^\s*(`{3,})", text, re.M)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks} {language}\n{text}\n{ticks}"


def _unsearched(text):
    """The reference and the guides are what a search should find."""
    return f"---\nsearch:\n  exclude: true\n---\n{text}"
