"""Progress bars, in a terminal and in a notebook."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import rich
import rich.progress

# A notebook keeps and sends on every picture of the bar.
_SECONDS_BETWEEN_PICTURES = 0.5


class Progress(rich.progress.Progress):
    """Rich's progress display; a notebook shows it in place, by its own means.

    Rich itself asks for widgets there, which few notebooks have and none keeps when it is saved.
    """

    def __init__(self, *columns: str | rich.progress.ProgressColumn, **options: Any):
        """Takes what Rich's display takes."""
        console = rich.get_console()
        self._picture: Any = None
        self._drawn = 0.0
        super().__init__(*columns, console=console, auto_refresh=not console.is_jupyter, **options)

    def start(self) -> None:
        if not self.console.is_jupyter or self.disable:
            return super().start()
        from IPython.display import display

        self._picture = display(self._table(), display_id=True)

    def update(self, *args: Any, **changes: Any) -> None:
        super().update(*args, **changes)
        self._draw()

    def advance(self, *args: Any, **options: Any) -> None:
        super().advance(*args, **options)
        self._draw()

    def stop(self) -> None:
        if self._picture is None:
            return super().stop()
        self._drawn = 0.0
        self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if self._picture is not None and now - self._drawn > _SECONDS_BETWEEN_PICTURES:
            self._drawn = now
            self._picture.update(self._table())

    def _table(self) -> Any:
        return self.make_tasks_table(self.tasks)


def track(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """Yields the items, and shows how far it has come; a terminal forgets it at the end."""
    with Progress(*Progress.get_default_columns(), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)
