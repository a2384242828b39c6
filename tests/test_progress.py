"""Progress bars in a terminal and in a notebook."""

import io
import sys
import types
import warnings

import pytest
import rich
from rich.console import Console

from dit_jax.progress import Progress, track
from dit_jax.training.log import RunLog


def as_text(picture) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture)
    return console.file.getvalue()


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows, in the order of time."""
    pictures = []

    class Handle:
        def update(self, picture):
            pictures.append(as_text(picture))

    def display(picture, display_id):
        assert display_id
        pictures.append(as_text(picture))
        return Handle()

    ipython = types.ModuleType("IPython.display")
    ipython.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(rich, "get_console", lambda: Console(force_jupyter=True))
    return pictures


def test_a_notebook_shows_a_run_in_place(shown, tmp_path, caplog):
    log = RunLog(tmp_path, start=0, steps=40, images_per_step=32)
    with warnings.catch_warnings(), caplog.at_level("INFO"):
        warnings.simplefilter("error")  # Rich warns where it finds no widgets.
        log.write(20, {"loss": 0.5, "images_per_second": 90.0})
        log.write(40, {"loss": 0.25, "images_per_second": 91.0})
        log.close()
    assert "0/40" in shown[0]
    assert all(part in shown[-1] for part in ("40/40", "loss 0.2500", "91 images/s"))
    assert not caplog.records


def test_pictures_for_a_notebook_are_few(shown):
    assert list(track(iter(range(1000)), "counting", 1000)) == list(range(1000))
    assert len(shown) < 20
    assert "100%" in shown[-1]


def test_a_bar_that_is_off_shows_nothing(shown):
    with Progress(disable=True) as progress:
        progress.advance(progress.add_task("counting", total=1))
    assert shown == []


def test_a_terminal_has_rich_s_own_bar(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    with Progress() as progress:
        progress.update(progress.add_task("counting", total=2), completed=2)
    assert "100%" in console.file.getvalue()
