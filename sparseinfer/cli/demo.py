"""sparseinfer demo"""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, add_measurement, console, positive, progress_bar


def add(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="prune, convert, check and time a real sentence encoder")
    parser.add_argument("--threads", type=positive, default=1, help="default: 1")
    add_measurement(parser, budget=4.0, budget_help="seconds of timing per sparsity")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer._machine import describe_machine
    from sparseinfer.bench import demo
    from sparseinfer.bench.report import write_json
    from sparseinfer.ops import active_isa

    machine = describe_machine(active_isa())
    out = console()
    with progress_bar(out) as progress:
        task = progress.add_task("starting", total=demo.steps(options.sparsity) + 1)

        def on_step(text: str) -> None:
            progress.update(task, advance=1, description=text)
            if not progress.console.is_terminal:
                progress.console.print(text)

        rows = demo.run(options.sparsity, threads=options.threads, budget_s=options.budget, on_step=on_step)
    out.print(f"{machine['cpu']}, {machine['isa']}, {options.threads} thread(s)", highlight=False)
    out.print(demo.table(rows))
    if options.json:
        write_json(options.json, demo.to_json(machine, options.threads, rows))
    wrong = [row for row in rows if not row.max_rel_diff <= demo.TOLERANCE]
    for row in wrong:
        out.print(
            f"[bold red]wrong:[/] sparsity {row.sparsity:g}: expected a difference of at most "
            f"{demo.TOLERANCE:g}, got {row.max_rel_diff:.1e}"
        )
    return 1 if wrong else 0
