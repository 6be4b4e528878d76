"""The files of a result: a page, every timing, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.environment import Environment


class Result(Protocol):
    """What a benchmark measured."""

    @property
    def environment(self) -> Environment:
        """Where and with what."""

    def to_json(self) -> str:
        """Every timing."""


_Result = TypeVar("_Result", bound=Result)


def write_files(
    results: _Result,
    name: str,
    folder: Path,
    to_markdown: Callable[[_Result, Path], str],
    draw: Callable[[_Result, Path], None],
) -> Path:
    """Write the files of a result.

    Args:
        results: what was measured.
        name: of what was measured, the first part of the files' names.
        folder: made if it is not there.
        to_markdown: from the results and the picture's path to the page.
        draw: writes the picture.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = results.environment.file_stem(name)
    page, data, picture = (folder / f"{stem}.{ending}" for ending in ("md", "json", "png"))
    data.write_text(results.to_json(), encoding="utf-8")
    page.write_text(to_markdown(results, picture), encoding="utf-8")
    draw(results, picture)
    return page
