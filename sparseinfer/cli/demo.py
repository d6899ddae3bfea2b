"""sparseinfer demo: prunes, converts, checks and times a real sentence encoder."""

from __future__ import annotations

import argparse

from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json
from sparseinfer.cli._common import Commands, add_json, console, progress_bar
from sparseinfer.cli._options import add_options, filled
from sparseinfer.demo import experiment, report
from sparseinfer.ops import active_isa


def add(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="prune, convert, check and time a real sentence encoder")
    add_options(parser, experiment.Settings)
    add_json(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    settings = filled(experiment.Settings, options)
    machine, out = describe_machine(active_isa()), console()
    with progress_bar(out) as progress:
        task = progress.add_task("starting", total=experiment.steps(settings) + 1)

        def on_step(text: str) -> None:
            progress.update(task, advance=1, description=text)
            if not progress.console.is_terminal:
                progress.console.print(text)

        measured = experiment.run(settings, on_step, lambda row: progress.console.print(report.line(row)))
    out.print(f"{machine['cpu']}, {machine['isa']}, {settings.threads} thread(s)", highlight=False)
    out.print(report.table(measured))
    if options.json:
        write_json(options.json, report.to_json(machine, settings.threads, measured))
    wrong = [one for one in measured if not one.max_rel_diff <= experiment.TOLERANCE]
    for one in wrong:
        out.print(
            f"[bold red]wrong:[/] sparsity {one.sparsity:g}: expected a difference of at most "
            f"{experiment.TOLERANCE:g}, got {one.max_rel_diff:.1e}"
        )
    return 1 if wrong else 0
