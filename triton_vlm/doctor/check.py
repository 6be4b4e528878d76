"""`Check`: one thing that was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How it is."""

    OK = "OK"
    WARN = "WARN"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: how it is.
        finding: what was found.
        next_step: what to do about it; empty when there is nothing to do.
        is_needed: whether nothing can be served while it is missing.
    """

    name: str
    status: Status
    finding: str
    next_step: str = ""
    is_needed: bool = False

    @property
    def prevents_serving(self) -> bool:
        """Whether this alone makes serving impossible."""
        return self.is_needed and self.status is Status.MISSING


def in_gib(num_bytes: int) -> str:
    """`num_bytes` for a person: in GiB, small amounts in MiB."""
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"
