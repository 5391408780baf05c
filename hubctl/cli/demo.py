"""`hubctl demo`: the whole path on this machine, and a page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.output import Output, duration, json_option

if TYPE_CHECKING:
    from hubctl.demo.outcome import Outcome


@click.command()
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default="demo-out",
    show_default=True,
    metavar="DIR",
    help="Where everything goes; emptied first when it is an earlier demo's.",
)
@click.option(
    "--fast", is_flag=True, help="A few training steps and pictures: shows that it runs, not how well."
)
@json_option
@click.pass_obj
def demo(output: Output, workdir: Path, fast: bool) -> None:
    """Train two adapters, push them, serve them, and look at the pictures.

    Starts a registry and a server of its own on free ports, trains a drawing style and a segmentation task on
    data that comes with hubctl, pushes both, asks for them by name, and judges what is served against the
    untouched bases. Leaves DIR/report.html; stops everything again, also on Ctrl-C. Needs no network, no GPU.

    \b
    Examples:
      hubctl demo
      hubctl demo --workdir /tmp/demo --json | jq .style_hit_rate
    """
    from hubctl.demo.outcome import as_json
    from hubctl.demo.run import run_demo
    from hubctl.demo.stages import DemoConfig

    few: dict[str, Any] = {}
    if fast:
        few = {"style_steps": 4, "segmentation_steps": 4, "held_out": 4, "photos": 4, "inference_steps": 4}
        few |= {"samples": False}
    outcome, report = run_demo(DemoConfig(workdir=workdir.resolve(), **few), output)
    if output.json or output.quiet:
        output.result(as_json(outcome, report), quiet="report")
        return
    output.table(_rows(outcome), {"what": "", "base": "base", "adapter": "adapter"})
    output.text("")
    output.text(f"{len(outcome.images())} pictures and masks served, {duration(outcome.total_s)} in all")
    output.text(f"report: {report}")


def _rows(outcome: Outcome) -> list[dict[str, str]]:
    style, segment = outcome.style, outcome.segment
    base, adapter = segment.base_figures, segment.adapter_figures
    return [
        {
            "what": f"drawn in the style ({len(style.things)} held-out captions)",
            "base": f"{style.base_rate:.0%}",
            "adapter": f"{style.adapter_rate:.0%}",
        },
        {
            "what": f"mean IoU ({len(segment.photos)} held-out pictures)",
            "base": f"{100 * base.miou:.1f}",
            "adapter": f"{100 * adapter.miou:.1f}",
        },
        *(
            {
                "what": f"  IoU of {label}",
                "base": f"{100 * base.iou[number]:.1f}",
                "adapter": f"{100 * adapter.iou[number]:.1f}",
            }
            for number, label in enumerate(segment.labels)
        ),
    ]
