"""How fast zipmix is, beside its limit and other programs: `make bench` writes results/benchmarks.json and .md.

    python benchmarks/speed.py                  every case
    python benchmarks/speed.py --only pass      some of them; the others on record are kept
    python benchmarks/speed.py --check          the ratios of quick cases, compared with those on record

passes.py has the passes and the restarts, fits.py whole fits, search.py the settings of `em`, scaling.py the curves,
memory.py peaks of memory; harness.py says how things are measured, peers.py what other programs do. Other programs that
are not installed are left out; pip install '.[bench]' has them.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Outcome


QUICK = ("pass", "sparse", "restarts", "acceleration")
NAMES = (*QUICK, "strategies", "fit", "scaling", "memory", "wide", "large")


def main() -> int:
    """Measures, and writes the results or compares with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed ratios and write nothing")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="CASE", help=", ".join(NAMES))
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads of torch (2)")
    options = parser.parse_args()
    use(options.threads)

    from record import RESULTS

    if options.check:
        return compare(options.only or QUICK, RESULTS)
    return measure(options.only or NAMES, RESULTS, keep=bool(options.only))


def measure(names: Sequence[str], folder: Path, *, keep: bool) -> int:
    """Measures cases and writes them, each when it is done; the others on record are kept or left out."""
    import record

    found = record.load(folder) if keep else {}
    for name in names:
        print(f"==> {name}", file=sys.stderr)
        began = time.perf_counter()
        outcome = cases()[name]()
        found[name] = record.as_record(name, outcome, time.perf_counter() - began)
        record.save({case: found[case] for case in NAMES if case in found}, folder)
    return 0


def compare(names: Sequence[str], folder: Path) -> int:
    """Measures cases again and prints their ratios beside those on record; 1 where one is lost."""
    import check
    import record

    lines, kept = check.check(record.load(folder), {name: cases()[name] for name in names})
    print(*lines, sep="\n")
    return int(not kept)


def cases() -> dict[str, Callable[[], "Outcome"]]:
    """What measures each case."""
    import fits
    import memory
    import passes
    import scaling
    import search

    return {
        "pass": passes.passes,
        "sparse": passes.sparse,
        "restarts": passes.restarts,
        "acceleration": search.acceleration,
        "strategies": search.strategies,
        "fit": fits.fits,
        "scaling": scaling.scaling,
        "memory": memory.contestants,
        "wide": memory.wide,
        "large": memory.large,
    }


def use(threads: int) -> None:
    """Keeps every contestant to so many cores and threads; has to come before torch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # Threads that wait by spinning make every product ten times slower where another process wants their core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(threads)

    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
