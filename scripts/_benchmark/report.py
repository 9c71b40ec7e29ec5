"""The figures: computed from the rounds, written as Markdown, JSON and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from scripts._benchmark.clock import Rounds, Spread, paired, spread
from scripts._benchmark.contenders import PLAIN_NAME, PYTORCH, TITLES, Entrant
from scripts._benchmark.live import Live, Session
from scripts._benchmark.machine import Machine, Meanwhile
from scripts._benchmark.peak import Way
from scripts._wav2lip.accuracy import Accuracy

mpl.use("Agg")  # before pyplot: there may be no screen

from matplotlib import pyplot as plt

__all__ = [
    "PEAK_GROUP",
    "Cell",
    "Likeness",
    "Peak",
    "Report",
    "Table",
    "draw",
    "markdown",
    "save",
    "session_table",
    "table_of",
]

PEAK_GROUP: Final = 0
"""group of the race in which the peak is measured; the others are batches"""
NOTHING: Final = "-"


@dataclass(frozen=True)
class Peak:
    """Most that the machine did in a precision, in this run."""

    gops: Spread
    """10^9 operations a second; a multiplication with its addition counts as two"""
    way: str
    kernel: str


@dataclass(frozen=True)
class Cell:
    """One contender with one batch and number of threads."""

    ms: Spread
    """for a frame"""
    rounds_ms: tuple[float, ...]
    to_openvino: Spread | None
    """how many times faster than plain OpenVINO f32, each round by itself"""
    to_pytorch: Spread | None
    peak_share: Spread | None
    """share of the peak of its precision"""


@dataclass(frozen=True)
class Table:
    """All that was measured with a number of threads."""

    threads: int
    rounds: int
    """that were asked for"""
    interrupted: bool
    peaks: dict[str, Peak]
    cells: dict[str, dict[int, Cell]]
    """by name of the contender and batch"""
    left_out: dict[str, str]
    """reasons by name"""


@dataclass(frozen=True)
class Likeness:
    """How near a picture comes to the original's."""

    to: str
    """name of the contender that it was compared with"""
    lower_half: Accuracy


@dataclass
class Report:
    """Everything."""

    machine: Machine
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    meanwhile: Meanwhile | None = None
    macs: dict[str, int] = field(default_factory=dict)
    """multiplications a frame by contender"""
    likeness: dict[str, Likeness] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)


def table_of(
    threads: int,
    rounds: int,
    entrants: Sequence[Entrant],
    ways: Mapping[str, Way],
    raced: Rounds,
    batches: Sequence[int],
) -> Table:
    """Compute the figures of a race.

    Args:
        threads: for the heading.
        rounds: that were asked for.
        entrants: who took part or was left out.
        ways: to measure the peak, by their name in the race.
        raced: the times.
        batches: groups of the race.
    """
    best = {}
    for precision in {way.precision for way in ways.values()}:
        measured = {name: list(raced.of(name, PEAK_GROUP).values()) for name, way in ways.items()}
        known = [name for name, way in ways.items() if way.precision == precision and measured[name]]
        if known:
            best[precision] = min(known, key=lambda name: _median(measured[name]) / ways[name].operations)
    cells: dict[str, dict[int, Cell]] = {}
    for entrant in entrants:
        for batch in batches:
            times = raced.of(entrant.name, batch)
            ms = spread([1000.0 * seconds for seconds in times.values()])
            if ms is None:
                continue
            share = None
            if entrant.macs is not None and entrant.precision in best:
                peak = best[entrant.precision]
                share = _scaled(
                    paired(times, raced.of(peak, PEAK_GROUP), _times_faster), 2.0 * entrant.macs / ways[peak].operations
                )
            cells.setdefault(entrant.name, {})[batch] = Cell(
                ms=ms,
                rounds_ms=tuple(round(1000.0 * seconds, 4) for seconds in times.values()),
                to_openvino=paired(times, raced.of(PLAIN_NAME, batch), _times_faster),
                to_pytorch=paired(times, raced.of(PYTORCH, batch), _times_faster),
                peak_share=share,
            )
    peaks = {}
    for precision, name in best.items():
        gops = spread([ways[name].operations / seconds / 1e9 for seconds in raced.of(name, PEAK_GROUP).values()])
        if gops is not None:
            peaks[precision] = Peak(gops, ways[name].name, ways[name].kernel)
    left_out = {entrant.name: entrant.reason for entrant in entrants if entrant.contender is None}
    return Table(threads, rounds, raced.interrupted, peaks, cells, {**left_out, **raced.failures})


def _median(values: Sequence[float]) -> float:
    found = spread(values)
    return found.median if found else float("inf")


def _scaled(of: Spread | None, factor: float) -> Spread | None:
    return None if of is None else Spread(factor * of.median, factor * of.q1, factor * of.q3)


def _times_faster(own: float, other: float) -> float:
    return other / own


# ---- Markdown


def markdown(report: Report) -> str:
    """All tables, to be read by people."""
    machine = report.machine
    lines = [
        "# Wav2Lip on this machine",
        "",
        f"{machine.processor}, {machine.cores} cores ({machine.logical_processors} logical processors), "
        f"{machine.memory_gib:.0f} GiB; {machine.system}; Python {machine.python}; "
        + ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
        + f". Processor flags: {' '.join(machine.flags) or 'not told'}.",
    ]
    if report.meanwhile is not None:
        told = report.meanwhile
        words = (
            f"Measured for {told.seconds:.0f} s; load average before {told.load_before:.2f}; meanwhile the host took "
            f"{told.stolen_s:.1f} s of processor time away, other processes used {told.others_s:.1f} s, the machine "
            f"stood still for {told.longest_stall_s:.2f} s at most."
        )
        lines += ["", words]
    lines += [f"\n{note}" for note in report.notes]
    for table in report.tables:
        lines += ["", *_times(report, table), "", *_ratios(table), "", *_peaks(table)]
        lines += [f"\nLeft out: {TITLES.get(name, name)}: {reason}." for name, reason in table.left_out.items()]
    if report.live:
        lines += ["", *_lives(report.live)]
    return "\n".join(lines)


def _times(report: Report, table: Table) -> list[str]:
    batches = _batches(table)
    done = max((len(cell.rounds_ms) for cells in table.cells.values() for cell in cells.values()), default=0)
    lines = [
        f"## {_threads(table)}",
        "",
        f"Time of a frame, ms: median of {done} rounds (quartiles)"
        + (f"; stopped before all {table.rounds}" if table.interrupted else "")
        + ". Likeness of the lower half to PyTorch's, or to plain OpenVINO's where PyTorch has other weights.",
        "",
        _row(
            "contender",
            *(f"batch {n}" for n in batches),
            "10^6 multiplications",
            "share of the peak, by batch",
            "largest difference, 0..1",
            "worst PSNR, dB",
            "median PSNR, dB",
        ),
        _row(*["---"] * (len(batches) + 6)),
    ]
    for name, cells in table.cells.items():
        shares = [cells[n].peak_share for n in batches if n in cells]
        like = report.likeness.get(name)
        lines.append(
            _row(
                TITLES[name],
                *(_spread(cells[n].ms, 1) if n in cells else NOTHING for n in batches),
                f"{report.macs[name] / 1e6:.0f}" if name in report.macs else NOTHING,
                " / ".join(f"{100 * share.median:.0f} %" for share in shares if share) or NOTHING,
                *(_likeness(like.lower_half) if like else [NOTHING] * 3),
            )
        )
    return lines


def _likeness(of: Accuracy) -> list[str]:
    return [f"{of.max_difference:.2g}", f"{of.worst_psnr_db:.1f}", f"{of.median_psnr_db:.1f}"]


def _ratios(table: Table) -> list[str]:
    batches = _batches(table)
    than = f"{TITLES[PLAIN_NAME]} and than {TITLES[PYTORCH]}"
    lines = [
        f"Times faster than {than}, by batch, {_threads(table)}: median of the rounds' own ratios (quartiles).",
        "",
        _row("contender", *(f"{name}, {n}" for name in ("OpenVINO", "PyTorch") for n in batches)),
        _row(*["---"] * (2 * len(batches) + 1)),
    ]
    ratios: tuple[Callable[[Cell], Spread | None], ...] = (lambda cell: cell.to_openvino, lambda cell: cell.to_pytorch)
    for name, cells in table.cells.items():
        found = [ratio(cells[n]) if n in cells else None for ratio in ratios for n in batches]
        lines.append(_row(TITLES[name], *(_spread(each, 2) if each else NOTHING for each in found)))
    return lines


def _peaks(table: Table) -> list[str]:
    words = (
        f"Peak, {_threads(table)}, measured in the same rounds (a multiplication with its addition counts as two). "
        "Mixed int8 is held against the peak of int8, though some of its layers may compute in more bits."
    )
    return [
        words,
        "",
        _row("precision", "10^9 operations a second", "measured by", "kernel"),
        _row(*["---"] * 4),
        *(_row(name, _spread(peak.gops, 0), peak.way, peak.kernel) for name, peak in sorted(table.peaks.items())),
    ]


def _lives(lives: Sequence[Live]) -> list[str]:
    lines = [
        "## Live, the whole pipeline with engine wav2lip",
        "",
        _row(
            "precision",
            "frames a second",
            "of them new pictures",
            "frames late, left out or held",
            "sound to picture, running mean: median, p95 (ms)",
            "single pictures: p95 (ms)",
            "processor by service, % of a core",
            "memory by service, MiB (PSS)",
            "machine idle",
        ),
        _row(*["---"] * 9),
    ]
    for live in lives:
        if live.figures is None:
            lines.append(_row(live.precision, f"not measured: {live.reason}", *[NOTHING] * 7))
            continue
        of = live.figures
        lines.append(
            _row(
                live.precision,
                f"{of.frame_rate_hz:.2f}",
                f"{of.new_rate_hz:.2f} a second",
                f"{of.late:.0f} / {of.skipped:.0f} / {of.held:.0f} of {of.frames}",
                f"{of.delay_median_ms:.0f}, {of.delay_p95_ms:.0f}",
                f"{of.picture_p95_ms:.0f}",
                ", ".join(f"{name} {100 * share:.0f}" for name, share in of.processor.items()),
                ", ".join(f"{name} {mib:.0f}" for name, mib in of.memory_mib.items()),
                f"{100 * of.idle_share:.0f} %",
            )
        )
    return [*lines, "", "The one who looks on and measures runs on the same machine."]


def session_table(session: Session) -> str:
    """What a session with the built-in engine costs, as Markdown."""
    looks = session.looks
    lines = [
        _row("what", f"% of a core, {session.side_px}x{session.side_px}"),
        _row("---", "---"),
        *(_row(name, _shares(of.processor[name] for of in looks)) for name in looks[0].processor),
        _row("all services", _shares(sum(of.processor.values()) for of in looks)),
        _row("the JPEG encoder's part of it", _shares(of.encoder for of in looks)),
        _row("all services without the JPEG encoder", _shares(of.without_encoder for of in looks)),
    ]
    rates, new = ([getattr(of, name) for of in looks] for name in ("frame_rate_hz", "new_rate_hz"))
    words = (
        f"Median of {len(looks)} looks of {looks[0].seconds:.0f} s each (least to most): user and "
        "system time of a session with the built-in engine and one viewer. "
        f"The viewer got {min(rates):.1f} frames a second or more, {min(new):.1f} of them new pictures or more."
    )
    return "\n".join([words, "", *lines])


def _shares(cores: Iterable[float]) -> str:
    values = [100.0 * core for core in cores]
    return f"{_median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _batches(table: Table) -> list[int]:
    return sorted({batch for cells in table.cells.values() for batch in cells})


def _threads(table: Table) -> str:
    return "1 thread" if table.threads == 1 else f"{table.threads} threads"


def _spread(of: Spread, digits: int) -> str:
    return f"{of.median:.{digits}f} ({of.q1:.{digits}f}-{of.q3:.{digits}f})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# ---- plot


def draw(report: Report, path: Path) -> None:
    """Plot time and share of the peak of every contender, a panel for each number of threads.

    Args:
        report: at least one table.
        path: a PNG file, written whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    names = [name for name in TITLES if any(name in table.cells for table in report.tables)]
    places = {name: -row for row, name in enumerate(names)}
    figure, panels = plt.subplots(
        len(report.tables),
        2,
        figsize=(13, 0.42 * len(names) * len(report.tables) + 1.6),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for (left, right), table in zip(panels, report.tables, strict=True):
        batches = _batches(table)
        for index, batch in enumerate(batches):
            colour = mpl.colormaps["viridis"](index / max(1, len(batches) - 1) * 0.85)
            own = [(name, cells[batch]) for name, cells in table.cells.items() if batch in cells]
            rows = [places[name] + 0.15 * ((len(batches) - 1) / 2 - index) for name, _ in own]
            _dots(left, [cell.ms for _, cell in own], rows, 1.0, colour, f"batch {batch}")
            shares = [(cell.peak_share, row) for (_, cell), row in zip(own, rows, strict=True) if cell.peak_share]
            _dots(right, [share for share, _ in shares], [row for _, row in shares], 100.0, colour, f"batch {batch}")
        left.set_xscale("log")
        left.xaxis.set_major_formatter("{x:g}")
        left.set_xlabel(f"ms a frame, {_threads(table)}: median and quartiles")
        right.set_xlabel(f"share of the measured peak of its precision, %, {_threads(table)}")
        right.set_xlim(0, None)
        left.set_yticks(list(places.values()), [TITLES[name] for name in names])
        for panel in (left, right):
            panel.grid(visible=True, which="both", axis="x", alpha=0.25)
        left.legend(fontsize="small")
    figure.suptitle(f"Wav2Lip on {report.machine.processor}, {report.machine.cores} cores")
    draft = _draft(path)
    try:
        figure.savefig(draft, format="png", dpi=130)
        draft.replace(path)
    finally:
        plt.close(figure)
        draft.unlink(missing_ok=True)


def _dots(panel: Any, spreads: Sequence[Spread], rows: Sequence[float], scale: float, colour: Any, label: str) -> None:
    medians = [scale * of.median for of in spreads]
    sides = [[scale * (of.median - of.q1) for of in spreads], [scale * (of.q3 - of.median) for of in spreads]]
    panel.errorbar(medians, rows, xerr=sides, fmt="o", markersize=4, color=colour, label=label)


# ---- files


def save(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write ``benchmark.md``, ``benchmark.json`` and, if anything was timed, ``benchmark.png``.

    Each is written whole or not at all; a plot of an earlier run does not stay beside a run without one.

    Returns:
        the files.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, data, plot = (folder / f"benchmark.{suffix}" for suffix in ("md", "json", "png"))
    _write(text, markdown(report) + "\n")
    _write(data, json.dumps({"titles": TITLES, **asdict(report)}, indent=1, allow_nan=False) + "\n")
    if not any(table.cells for table in report.tables):
        plot.unlink(missing_ok=True)  # that of a run before
        return text, data
    draw(report, plot)
    return text, data, plot


def _write(path: Path, text: str) -> None:
    draft = _draft(path)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.new")
