"""A progress bar on stderr: shown only on a terminal, and removed when the work is done."""

from __future__ import annotations

from types import TracebackType


class Progress:
    """A progress bar over the steps of a task; total=None: unknown."""

    def __init__(self, description: str, total: int | None, *, shown: bool = True) -> None:
        # Not at the top: to load rich is a third of what `import sparseinfer` costs.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        disable = not (shown and console.is_terminal)
        self._bar = Bar(*columns, console=console, transient=True, disable=disable)
        self._task = self._bar.add_task(description, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def describe(self, text: str) -> None:
        """Shows what is being done now."""
        self._bar.update(self._task, description=text)

    def advance(self) -> None:
        self._bar.advance(self._task)
