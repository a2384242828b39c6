"""The fenced code blocks of the documentation, and the commands in them."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: (page.parent != ROOT, page),
)

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: the file it is in.
      line: where its text begins, from 1.
      language: first word after the fence.
      title: file that the text is, as a title has it, or None.
      text: what is fenced.
    """

    page: pathlib.Path
    line: int
    language: str
    title: str | None
    text: str

    @property
    def place(self) -> str:
        """For messages: page and line."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: pathlib.Path) -> str:
    """The page's path in the repository."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def blocks_of(page: pathlib.Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, fence, start, info = [], None, 0, ""
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        match = _FENCE.match(line)
        if fence is None and match:
            fence, start, info = match, number + 1, match[3].strip()
        elif fence is not None and line.strip() == fence[2]:
            indent = len(fence[1])
            text = "\n".join(line[indent:] for line in lines[start - 1 : number - 1]) + "\n"
            title = _TITLE.search(info)
            language = info.split()[0] if info else ""
            found.append(Block(page, start, language, title and title[1], text))
            fence = None
    assert fence is None, f"{name_of(page)}:{start}: a block without an end"
    return found


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      block: where it stands.
      variables: what is set for it alone, NAME=VALUE.
      words: program and arguments.
    """

    block: Block
    variables: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as one line."""
        return " ".join(self.words)

    @property
    def program(self) -> str:
        """What is run, without the folder it lies in."""
        return pathlib.PurePosixPath(self.words[0]).name


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block: lines, those that go on joined, cut at && and &.

    Raises:
      ValueError: a quotation does not end.
    """
    pending = ""
    for line in block.text.splitlines(keepends=True):
        pending += line
        if line.endswith("\\\n"):
            continue
        try:
            words = shlex.split(pending.replace("\\\n", " "), comments=True)
        except ValueError:
            continue  # A quotation goes on.
        pending = ""
        yield from _split(block, words)
    if pending.strip():
        raise ValueError(f"{block.place}: a quotation does not end")


def _split(block: Block, words: list[str]) -> Iterator[Command]:
    current: list[str] = []
    for word in [*words, "&&"]:
        if word not in ("&&", "&"):
            current.append(word)
            continue
        count = next((i for i, w in enumerate(current) if not re.match(r"[A-Z_]+=", w)), 0)
        if current[count:]:
            yield Command(block, tuple(current[:count]), tuple(current[count:]))
        current = []
