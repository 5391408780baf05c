"""What a benchmark found, as Markdown, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from serve.bench.residents import Cost
from serve.bench.run import Report

_NONE = "-"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `<shape>.md`, `.json` and `.png` into `folder`, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    name = report.settings.shape
    markdown, data, plot = (folder / f"{name}.{ending}" for ending in ("md", "json", "png"))
    markdown.write_text(to_markdown(report) + f"\n![throughput]({plot.name})\n", encoding="utf-8")
    data.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    draw_ratios(report, plot)
    return [markdown, data, plot]


def to_markdown(report: Report) -> str:
    """The tables, with the machine and what was asked of it."""
    settings = report.settings
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"# {settings.shape}",
        "",
        f"{report.machine}; {versions}. {settings.jobs} requests at once, adapters of rank {settings.rank} "
        f"over every attention projection, {settings.turns} requests of each client in each of "
        f"{settings.rounds} rounds. Figures are medians over the rounds; a ratio is throughput over that of "
        "the base alone, all requests in one batch, measured right before."
        + (f" hubctl and the base are compiled ({settings.compile})." if settings.compile != "off" else ""),
        "",
        *_table(
            ("", "adapters", "arrival", "images/s", "ratio", "p50 s", "p99 s"),
            [
                (
                    row.contender,
                    str(row.adapters or _NONE),
                    row.arrival,
                    f"{row.load.images_per_s:.3g}",
                    _NONE if row.ratio is None else f"{row.ratio:.2f}",
                    f"{row.load.p50_s:.3g}",
                    f"{row.load.p99_s:.3g}",
                )
                for row in report.rows
            ],
        ),
        "",
        f"Wall time of mixed requests in which no forward of the denoiser ran: {report.glue:.1%}.",
        "Most device memory: "
        + (
            f"{report.gpu_bytes / 2**30:.1f} GiB."
            if report.gpu_bytes
            else f"not measured on a CPU; on a GPU, `hubctl bench engine --base {settings.shape}` tells."
        ),
        "",
        "Host time to load one more adapter (through the gate, its files in the page cache), to read and "
        "copy the same bytes, and to activate a resident adapter:",
        "",
        *_table(
            (
                "resident",
                "load ms",
                "copy ms",
                "activate ms",
                "diffusers load ms",
                "set_adapters",
            ),
            [_cost_row(cost, report.diffusers) for cost in report.pool],
        ),
    ]
    return "\n".join(lines) + "\n"


def draw_ratios(report: Report, path: Path) -> None:
    """Throughput over the base's own against the number of different adapters, one line a contender."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="different adapters", ylabel="throughput / base alone")
    counts = report.settings.adapters
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    for contender in dict.fromkeys(row.contender for row in report.rows if row.adapters):
        ratios = {count: ratio for count in counts if (ratio := report.ratio(contender, count))}
        axes.plot(list(ratios), list(ratios.values()), marker="o", label=contender)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_title(f"{report.settings.shape}: {report.settings.jobs} requests at once ({report.machine})")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost_row(cost: Cost, peers: Sequence[Cost]) -> tuple[str, ...]:
    peer = next((p for p in peers if p.resident == cost.resident), None)
    theirs = (peer.load_s, peer.activate_s) if peer else (None, None)
    seconds = (cost.load_s, cost.copy_s, cost.activate_s, *theirs)
    return str(cost.resident), *(_NONE if s is None else f"{1000 * s:.3g}" for s in seconds)
