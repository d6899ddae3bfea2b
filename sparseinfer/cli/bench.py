"""sparseinfer bench"""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, add_measurement, console, output, positive, progress_bar, size


def add(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time one linear layer or whole models, sparse against dense")
    parser.add_argument(
        "--model", nargs="+", default=[], help="bert-base, resnet-50, smollm2, crepe: whole models instead"
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], help="of --model; default: 1")
    parser.add_argument(
        "--shape", dest="shapes", type=size, action="append", metavar="NxK", help="n and k; repeatable"
    )
    parser.add_argument("--tokens", type=positive, nargs="+", default=[1, 16, 128], metavar="M")
    parser.add_argument("--block", type=size, metavar="RxC", help="zeros in blocks; adds BSR kernels")
    parser.add_argument(
        "--isa", nargs="+", default=[], help="instruction-set levels; default: the active one"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["f32"],
        help="f32, bf16, f16; of --model f32, bf16w (weights), bf16; default: f32",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=["warm"],
        help="warm, from the cache, and cold, from memory; default: warm",
    )
    parser.add_argument("--threads", type=positive, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=output, metavar="FILE", help="draw the speed-ups (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="print the geometric means only")
    add_measurement(parser, budget=1.0, budget_help="seconds of timing per shape, sparsity and token count")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    return _bench_model(options) if options.model else _bench_layer(options)


def _bench_model(options: argparse.Namespace) -> int:
    from sparseinfer._machine import describe_machine
    from sparseinfer.bench import models
    from sparseinfer.bench.report import write_json
    from sparseinfer.ops import active_isa

    machine, out = describe_machine(active_isa()), console()
    rows: list[models.Row] = []
    with progress_bar(out) as progress:
        task = progress.add_task("starting", total=None)
        for name in options.model:
            for threads in options.threads:
                rows += models.run(
                    name,
                    batches=options.batch,
                    sparsities=options.sparsity,
                    dtypes=options.dtype,
                    threads=threads,
                    budget_s=options.budget,
                    on_step=lambda text: progress.update(task, description=text),
                )
    out.print(f"{machine['cpu']}, {machine['isa']}", highlight=False)
    out.print(models.table(rows))
    if options.json:
        write_json(options.json, models.to_json(machine, rows))
    return 0


def _bench_layer(options: argparse.Namespace) -> int:
    from sparseinfer._machine import describe_machine
    from sparseinfer.bench import layer, report
    from sparseinfer.bench.plot import plot
    from sparseinfer.ops import active_isa

    settings = layer.Settings(
        shapes=options.shapes or layer.Settings.shapes,
        sparsities=options.sparsity,
        tokens=options.tokens,
        dtypes=options.dtype,
        threads=options.threads,
        weights=options.weights,
        block=options.block,
        isas=options.isa,
        budget_s=options.budget,
        seed=options.seed,
    )
    machine = describe_machine(active_isa())
    out = console()
    out.print(report.heading(machine, settings), highlight=False)
    with progress_bar(out) as progress:
        task = progress.add_task("measuring", total=settings.cells)

        def on_cell(rows: list[layer.Row]) -> None:
            progress.advance(task)
            if not options.quiet:
                out.print(report.cell_table(rows))

        rows = layer.run(settings, on_cell)
    for table in report.summary_tables(rows):
        out.print(table)
    if options.json:
        report.write_json(options.json, report.to_json(machine, settings, rows))
    if options.plot:
        plot(rows, options.plot, title=report.heading(machine, settings).splitlines()[0])
    return 0
