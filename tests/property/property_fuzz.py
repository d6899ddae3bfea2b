"""`make fuzz`: the cases of test_property.py with fresh seeds, for as long as asked.

python tests/property/property_fuzz.py --seconds 600 --seed 1 [--keep-going]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from property_cases import Case, script
from property_check import check
from property_compare import Mismatch, Refused
from property_reduce import failure, reduced
from property_strategies import cases

EXAMPLES = 50  # of one seed


def examples(
    number: int, count: int, failed: Callable[[Case, Mismatch], None], *, goes_on: bool = False
) -> Counter[str]:
    """Checks so many cases of a seed; what became of them. After the first that `failed` no other is."""
    seen: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(cases())
    def run(case: Case) -> None:
        if seen["failed"] and not goes_on:
            return
        try:
            check(case)
        except Refused:
            seen["refused by the dense model"] += 1
        except Mismatch as mismatch:
            seen["failed"] += 1
            failed(case, mismatch)
        else:
            seen["equal"] += 1

    run()
    return seen


def report(case: Case, mismatch: Mismatch) -> str:
    """What is wrong with the smallest case that fails in the same way, and the case as a file that runs."""
    small = reduced(case, mismatch.kind)
    mismatch = failure(small) or mismatch
    return f"{mismatch}\n\n{script(small)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="default: the time")
    parser.add_argument("--keep-going", action="store_true", help="do not end at the first mismatch")
    args = parser.parse_args()
    number = int(time.time()) if args.seed is None else args.seed
    started, total = time.monotonic(), Counter[str]()

    def failed(case: Case, mismatch: Mismatch) -> None:
        sys.stdout.write(f"# seed {number}: {report(case, mismatch)}\n\n")
        sys.stdout.flush()

    while time.monotonic() - started < args.seconds and (args.keep_going or not total["failed"]):
        total += examples(number, EXAMPLES, failed, goes_on=args.keep_going)
        number += 1
    count = sum(total.values())
    speed = count / (time.monotonic() - started)
    sys.stdout.write(f"{count} examples, {speed:.1f} a second: {dict(total)}; next seed {number}\n")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
