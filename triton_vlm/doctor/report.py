"""The report, for a person and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from triton_vlm.doctor.check import Check, Status, in_gib
from triton_vlm.doctor.gpu import Library
from triton_vlm.doctor.memory import SEQS, Cell, Footprint, lengths_up_to, table
from triton_vlm.doctor.model import Model

if TYPE_CHECKING:
    from python_backend.gpu import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found.

    Attributes:
        checks: one per line.
        gpus: what the driver shows.
        tensorrt: the TensorRT modules that are installed.
        model: what was asked about, None if nothing was.
        footprints: its memory, per device.
    """

    checks: Sequence[Check]
    gpus: Sequence[Gpu]
    tensorrt: Sequence[Library]
    model: Model | None = None
    footprints: Sequence[Footprint] = ()

    @property
    def can_serve(self) -> bool:
        """Whether serving on this machine is possible."""
        return not any(check.prevents_serving for check in self.checks)


def as_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [_line(check) for check in report.checks]
    for footprint in report.footprints:
        assert report.model is not None
        lines += ["", *_footprint(report.model, footprint)]
    what = "A model" if report.model is None else report.model.name
    verdict = "can be served" if report.can_serve else "cannot be served"
    return "\n".join([*lines, "", f"{what} {verdict} on this machine."])


def _line(check: Check) -> str:
    text = f"{check.status:<9}{check.name:<15}{check.finding}"
    return f"{text}: {check.next_step}" if check.next_step else text


def model_check(
    model: Model, footprints: Sequence[Footprint], usable: Sequence[Footprint]
) -> Check:
    """Whether the model fits with its limits, and if not, what does.

    Args:
        model: what was asked about.
        footprints: on every device.
        usable: those of them that this version of the project can serve on.
    """
    seqs, length = model.limits
    limits = f"max_seqs {seqs} and max_model_len {length:,}"
    fitting = [footprint.device for footprint in footprints if footprint.fits(seqs, length)]
    if any(footprint.fits(seqs, length) for footprint in usable):
        finding = f"{model.name} with {limits} fits: {', '.join(fitting)}"
        return Check(name="Model", status=Status.OK, finding=finding, is_needed=True)
    finding = f"{model.name} with {limits} does not fit"
    most = max((footprint.most_seqs(length) for footprint in usable), default=0)
    if most:
        return Check(
            name="Model",
            status=Status.WARN,
            finding=finding,
            next_step=f"build it with --max-seqs {most} or less, or with a smaller --max-model-len",
            is_needed=True,
        )
    return Check(
        name="Model",
        status=Status.MISSING,
        finding=finding,
        next_step="build it with --precision int4 or a smaller --max-model-len, or use more memory",
        is_needed=True,
    )


def _footprint(model: Model, footprint: Footprint) -> list[str]:
    seqs, length = model.limits
    cache, sliding = footprint.cache, model.num_sliding_layers
    lines = [
        f"{footprint.device}, {footprint.precision}",
        f"  KV cache per token  {cache.formula} = {cache.token_bytes:,} B"
        + (f"; {in_gib(cache.row_bytes)} more per sequence" if cache.row_bytes else "")
        + (f"; {sliding} sliding-window layers keep the whole context too" if sliding else ""),
        f"  max_seqs {seqs}, max_model_len {length:,}  "
        f"{in_gib(footprint.weights_bytes)} weights"
        f" + {seqs} x {length:,} x {cache.token_bytes:,} B ="
        f" {in_gib(footprint.cache_bytes(seqs, length))} KV cache"
        f" + {in_gib(footprint.activation_bytes(seqs, length))} activations (estimate)"
        f" + {in_gib(footprint.fixed_bytes)} programs and encoder"
        f" = {in_gib(footprint.total_bytes(seqs, length))}"
        f" of {in_gib(footprint.free_bytes)} free",
    ]
    columns = _lengths(model)
    lines.append("  max_seqs \\ max_model_len" + "".join(f"{column:>10,}" for column in columns))
    lines += [
        f"  {row[0].max_seqs:>24}" + "".join(f"{_cell(cell):>10}" for cell in row)
        for row in table(footprint, columns)
    ]
    return lines


def _cell(cell: Cell) -> str:
    return in_gib(cell.total_bytes) if cell.fits else "-"


def _lengths(model: Model) -> list[int]:
    built = model.manifest.max_model_len if model.manifest is not None else None
    return lengths_up_to(model.max_position, built)


def as_json(report: Report) -> str:
    """The same as JSON; sizes in bytes."""
    data: dict[str, Any] = {
        "can_serve": report.can_serve,
        "checks": [asdict(check) for check in report.checks],
        "gpus": [asdict(gpu) for gpu in report.gpus],
        "tensorrt": [asdict(library) for library in report.tensorrt],
    }
    model = report.model
    if model is not None:
        seqs, length = model.limits
        data["model"] = {
            "name": model.name,
            "is_built": model.manifest is not None,
            "max_seqs": seqs,
            "max_model_len": length,
            "devices": [_footprint_json(model, footprint) for footprint in report.footprints],
        }
    return json.dumps(data, indent=2)


def _footprint_json(model: Model, footprint: Footprint) -> dict[str, Any]:
    seqs, length = model.limits
    return {
        "device": footprint.device,
        "precision": footprint.precision,
        "free_bytes": footprint.free_bytes,
        "weights_bytes": footprint.weights_bytes,
        "cache_token_bytes": footprint.cache.token_bytes,
        "cache_row_bytes": footprint.cache.row_bytes,
        "cache_bytes": footprint.cache_bytes(seqs, length),
        "activation_bytes": footprint.activation_bytes(seqs, length),
        "fixed_bytes": footprint.fixed_bytes,
        "total_bytes": footprint.total_bytes(seqs, length),
        "fits": footprint.fits(seqs, length),
        "max_seqs": list(SEQS),
        "table": [asdict(cell) for row in table(footprint, _lengths(model)) for cell in row],
    }
