"""sparseinfer report: writes a page about a model: what was pruned and converted, why, what it gains."""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, console
from sparseinfer.cli._options import add_options, filled
from sparseinfer.report.collect import ReportJob, collect


def add(commands: Commands) -> None:
    parser = commands.add_parser("report", help="a page about a model: what was pruned, converted, and why")
    add_options(parser, ReportJob)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.report.page import html

    job = filled(ReportJob, options)
    if job.out.is_dir() or not job.out.absolute().parent.is_dir():
        raise ValueError(f"out: expected a file in an existing folder, got {str(job.out)!r}")
    steps = console(stderr=True)
    content = collect(job, lambda step: steps.print(step, highlight=False, soft_wrap=True, markup=False))
    job.out.write_text(html(content), encoding="utf-8")
    console().print(f"{job.out}: {job.out.stat().st_size:,} bytes", highlight=False, soft_wrap=True)
    return 0
