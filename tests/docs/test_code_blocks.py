"""Every code block of the documentation does what it says.

Python is run, page by page, in a folder that has what earlier commands would have made. Commands of
this project are run in small; those that need what cannot be had here are parsed and checked
(`tables.py` says which, and why). A block of any other kind fails.
"""

import shutil

import pytest

from tests.docs import tables, workspace
from tests.docs.blocks import PAGES, Block, blocks_of, commands_of, name_of
from tests.docs.proofs import Page

WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    workspace.build(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    shutil.copytree(built, tmp_path, symlinks=True, dirs_exist_ok=True)
    with workspace.inside(tmp_path):
        yield tmp_path


def prove(page, slow):
    proofs = Page(slow)
    for block in blocks_of(page):
        try:
            proofs.prove(block)
        except BaseException as error:
            raise AssertionError(f"the block at {block.place} failed: {error}") from error


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_every_block_is_proved(page, folder):
    prove(page, slow=False)


SLOW = [page for page in WITH_BLOCKS if any(key in page.read_text() for key in tables.SLOW)]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_every_block_is_proved_with_those_that_take_long(page, folder):
    prove(page, slow=True)


def test_no_row_of_the_tables_is_left_over():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    shells = [block for block in blocks if block.language in ("", "bash", "console")]
    commands = [command for block in shells for command in commands_of(block)]
    texts = [" ".join((*command.variables, *command.words)) + " " for command in commands]
    assert not [key for key in tables.PARSED if not any(key in text for text in texts)]
    texts += [block.text for block in blocks if block.language == "python"]
    assert not [key for key in tables.SLOW if not any(key in text for text in texts)]
    assert not set(tables.FOREIGN) - {command.program for command in commands}
    assert not set(tables.SHOWN) - {block.language for block in blocks}


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("ruby", "puts 1\n", "unknown kind 'ruby'"),
        ("", "curl example.org\n", "'curl' is in no table"),
        ("", "make nothing\n", "no such target"),
        ("", "pip install leftpad\n", "in no list"),
        ("", "pip install -e .[gpu]\n", "no extras"),
        ("", "python train.py configs/digits.py --model.dephts 3\n", "exit status 2"),
        ("", "python train.py configs/dit_xl_imagenet256.py --data.pth x\n", "2"),
        ("", "python evaluate.py RUN --refrence VIRTUAL_imagenet256_labeled.npz\n", "status 2"),
        (
            "",
            "python -m dit_jax convert from-torch sd-vae-ft-ema weights/vae --var 1\n",
            "status 2",
        ),
        ("", "python -m dit_jax plan configs/digits.py --topology v5e:4x4 --model.x 2\n", "2"),
        ("", "python other.py\n", "no proof is known"),
        ("python", "assert 1 == 2, 3\n", "3"),
    ],
)
def test_what_is_wrong_is_found(folder, language, text, message):
    block = Block(folder / "page.md", 1, language, None, text)
    with pytest.raises((AssertionError, SystemExit), match=message):
        Page(slow=False).prove(block)
