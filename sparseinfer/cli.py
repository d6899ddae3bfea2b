"""The command line: sparseinfer {demo, bench, doctor}."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Wide enough for every table where the output is a file, which has no width of its own.
_FILE_WIDTH = 132
_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status: 0 done, 1 a result was wrong or could not be had, 2 bad usage."""
    options = _parser().parse_args(argv)
    try:
        status: int = options.command(options)
    except (OSError, ValueError, RuntimeError) as error:
        _console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _demo(options: argparse.Namespace) -> int:
    from sparseinfer._machine import describe_machine
    from sparseinfer.bench import demo
    from sparseinfer.bench.report import write_json
    from sparseinfer.ops import active_isa

    machine = describe_machine(active_isa())
    console = _console()
    with _progress(console) as progress:
        task = progress.add_task("starting", total=demo.steps(options.sparsity) + 1)

        def on_step(text: str) -> None:
            progress.update(task, advance=1, description=text)
            if not progress.console.is_terminal:
                progress.console.print(text)

        rows = demo.run(options.sparsity, threads=options.threads, budget_s=options.budget, on_step=on_step)
    console.print(f"{machine['cpu']}, {machine['isa']}, {options.threads} thread(s)", highlight=False)
    console.print(demo.table(rows))
    if options.json:
        write_json(options.json, demo.to_json(machine, options.threads, rows))
    wrong = [row for row in rows if not row.max_rel_diff <= demo.TOLERANCE]
    for row in wrong:
        console.print(
            f"[bold red]wrong:[/] sparsity {row.sparsity:g}: expected a difference of at most "
            f"{demo.TOLERANCE:g}, got {row.max_rel_diff:.1e}"
        )
    return 1 if wrong else 0


def _bench(options: argparse.Namespace) -> int:
    return _bench_model(options) if options.model else _bench_layer(options)


def _bench_model(options: argparse.Namespace) -> int:
    from sparseinfer._machine import describe_machine
    from sparseinfer.bench import models
    from sparseinfer.bench.report import write_json
    from sparseinfer.ops import active_isa

    machine, console = describe_machine(active_isa()), _console()
    rows: list[models.Row] = []
    with _progress(console) as progress:
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
    console.print(f"{machine['cpu']}, {machine['isa']}", highlight=False)
    console.print(models.table(rows))
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
    console = _console()
    console.print(report.heading(machine, settings), highlight=False)
    with _progress(console) as progress:
        task = progress.add_task("measuring", total=settings.cells)

        def on_cell(rows: list[layer.Row]) -> None:
            progress.advance(task)
            if not options.quiet:
                console.print(report.cell_table(rows))

        rows = layer.run(settings, on_cell)
    for table in report.summary_tables(rows):
        console.print(table)
    if options.json:
        report.write_json(options.json, report.to_json(machine, settings, rows))
    if options.plot:
        plot(rows, options.plot, title=report.heading(machine, settings).splitlines()[0])
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sparseinfer.bench import doctor

    _console().print(doctor.table())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sparseinfer", description="Pruned PyTorch models that run faster.")
    commands = parser.add_subparsers(required=True, metavar="{demo,bench,doctor}")

    demo = commands.add_parser("demo", help="prune, convert, check and time a real sentence encoder")
    demo.add_argument("--threads", type=_positive, default=1, help="default: 1")
    _common(demo, budget=4.0, budget_help="seconds of timing per sparsity")
    demo.set_defaults(command=_demo)

    bench = commands.add_parser("bench", help="time one linear layer or whole models, sparse against dense")
    bench.add_argument(
        "--model", nargs="+", default=[], help="bert-base, resnet-50, smollm2, crepe: whole models instead"
    )
    bench.add_argument("--batch", type=_positive, nargs="+", default=[1], help="of --model; default: 1")
    bench.add_argument(
        "--shape", dest="shapes", type=_size, action="append", metavar="NxK", help="n and k; repeatable"
    )
    bench.add_argument("--tokens", type=_positive, nargs="+", default=[1, 16, 128], metavar="M")
    bench.add_argument("--block", type=_size, metavar="RxC", help="zeros in blocks; adds BSR kernels")
    bench.add_argument("--isa", nargs="+", default=[], help="instruction-set levels; default: the active one")
    bench.add_argument(
        "--dtype",
        nargs="+",
        default=["f32"],
        help="f32, bf16, f16; of --model f32, bf16w (weights), bf16; default: f32",
    )
    bench.add_argument(
        "--weights",
        nargs="+",
        default=["warm"],
        help="warm, from the cache, and cold, from memory; default: warm",
    )
    bench.add_argument("--threads", type=_positive, nargs="+", default=[1], help="default: 1")
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument("--plot", type=_output, metavar="FILE", help="draw the speed-ups (needs matplotlib)")
    bench.add_argument("--quiet", action="store_true", help="print the geometric means only")
    _common(bench, budget=1.0, budget_help="seconds of timing per shape, sparsity and token count")
    bench.set_defaults(command=_bench)

    doctor = commands.add_parser("doctor", help="what this installation can do on this machine")
    doctor.set_defaults(command=_doctor)
    return parser


def _common(parser: argparse.ArgumentParser, *, budget: float, budget_help: str) -> None:
    parser.add_argument("--sparsity", type=float, nargs="+", default=_SPARSITIES, metavar="S")
    parser.add_argument("--budget", type=float, default=budget, metavar="SECONDS", help=budget_help)
    parser.add_argument("--json", type=_output, metavar="FILE", help="write results and machine")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected two sizes such as 3072x768, got {text!r}")
    return int(match[1]), int(match[2])


def _output(text: str) -> Path:
    """Refused here rather than after minutes of measuring."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _FILE_WIDTH)


def _progress(output: Console) -> Progress:
    """On the terminal that shows the tables, else on stderr, so that a file gets nothing but the tables."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = output if output.is_terminal else _console(stderr=True)
    return Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    )
