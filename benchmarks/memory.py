"""Peaks of resident memory, each of a process of its own: contestants of a pass, a wide table, a large file."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from harness import INSTALL, Finding, Outcome, Peak, alone, versions
from passes import IN_PART, NOTHING, drawn, pass_makers

PROGRAMS = ("zipmix", "torch", "numpy")

ONE_CONTESTANT = """
import numpy as np, torch, passes
from zipmix import Parameters
X = np.load({table!r})
theta = Parameters(*map(torch.from_numpy, np.load({theta!r}).values()))
if {name!r} != passes.NOTHING:
    try:
        contestant = passes.pass_makers(X, theta, {part})[{name!r}]()
        contestant.run()
        print(*contestant.programs)
    except ModuleNotFoundError as error:
        print("without", error.name)
else:
    print("zipmix torch numpy")
"""


def contestants(
    n: int = 200_000, d: int = 100, k: int = 20, part: int = 10_000, only: Sequence[str] | None = None
) -> Outcome:
    """What each contestant of the pass takes, from its own copy of the table on."""
    X, theta = drawn(n, d, k)
    with tempfile.TemporaryDirectory() as folder:
        table, point = Path(folder) / "table.npy", Path(folder) / "theta.npz"
        np.save(table, X)
        np.savez(point, **{name: value.numpy() for name, value in theta._asdict().items()})

        def peak(name: str) -> Peak:
            return alone(ONE_CONTESTANT.format(table=str(table), theta=str(point), part=part, name=name))

        names = [NOTHING, *(only or pass_makers(X, theta, part))]
        peaks = {name: peak(name) for name in names}
    base, rows, left_out = peaks[NOTHING].gb, [], []
    for name, found in peaks.items():
        first, *rest = found.told.split()
        if first == "without":
            left_out.append(f"{name}: left out, {rest[0]} is not installed; {INSTALL}")
            continue
        some = name in IN_PART
        rows.append(
            {
                "contestant": name,
                "rows": part if some else n,
                "peak_gb": found.gb,
                "at_all_rows_gb": base + (found.gb - base) * (n / part if some else 1),
                "repeats": 1,
                "versions": versions((first, *rest)),
            }
        )
    return Outcome(
        f"Peak of resident memory of one pass: N = {n:,}, D = {d}, K = {k}",
        rows,
        [],
        (
            "Each in a process of its own, imports and the table included. Where rows are fewer, what a contestant"
            " takes beyond imports and table is scaled to all of them. The bare products hold A in float64.",
        ),
        tuple(left_out),
    )


WIDE = """
import numpy as np, scipy.sparse as sp, zipmix
rng = np.random.default_rng(0)
N, D, each = {n}, {d}, {each}
columns = rng.integers(D // each, size=(N, each), dtype=np.int32)
columns += np.arange(each, dtype=np.int32) * (D // each)
counts = rng.geometric(0.5, size=N * each).astype(np.uint8)
X = sp.csr_array((counts, columns.ravel(), np.arange(0, N * each + 1, each, dtype=np.int32)), shape=(N, D))
zipmix.fit(X, {k}, n_starts=1, annealing=0, race=None, split_merge=0, max_iter=2)
"""


def wide(n: int = 100_000, d: int = 20_000, each: int = 600, k: int = 20) -> Outcome:
    """A fit of a wide sparse table, the table included."""
    found = alone(WIDE.format(n=n, d=d, each=each, k=k))
    row = {"contestant": "zipmix", "peak_gb": found.gb, "process_s": found.seconds, "repeats": 1}
    return Outcome(
        f"A wide sparse table: N = {n:,}, D = {d:,}, {each / d:.0%} non-zero, K = {k}",
        [row | {"versions": versions((*PROGRAMS, "scipy"))}],
        [Finding("peak of resident memory, GB", found.gb, 8.0, at_most=True)],
        ("A start and two iterations of `zipmix.fit`, in a process that makes the table first.",),
    )


FIT = """
import numpy as np, torch, zipmix
from zipmix import Parameters
start = Parameters(*map(torch.from_numpy, np.load({theta!r}).values()))
X = {source}
search = dict(annealing=0, race=None, split_merge=0)
done = zipmix.fit(X, {k}, start=start, **search, accelerate=False, max_iter={n_iter})
np.savez({out!r}, objective=done.objective, **{{name: v.numpy() for name, v in done.parameters._asdict().items()}})
print(done.seconds)
"""


def large(n: int = 60_000_000, d: int = 100, k: int = 5, n_iter: int = 2, block: int = 1_000_000) -> Outcome:
    """A fit of a file through zipmix.stream beside the fit of the same table in memory."""
    size = n * d / 1e9
    with tempfile.TemporaryDirectory() as folder:
        room = min(shutil.disk_usage(folder).free, psutil.virtual_memory().available) / 1e9
        if room < 1.5 * size:
            raise SystemExit(
                f"large needs {1.5 * size:.1f} GB of memory and of disk in {folder}, and {room:.1f} are free."
            )
        table, point = Path(folder) / "table.npy", Path(folder) / "theta.npz"
        theta = write_table(table, n, d, k, block)
        np.savez(point, **theta)
        peaks, found = {}, {}
        for name, source in (
            ("stream", f"zipmix.stream({str(table)!r})"),
            ("memory", f"np.load({str(table)!r}, mmap_mode='r')"),
        ):
            out = Path(folder) / f"{name}.npz"
            peaks[name] = alone(FIT.format(theta=str(point), source=source, k=k, n_iter=n_iter, out=str(out)))
            found[name] = dict(np.load(out))
    differ = max(
        float(np.max(np.abs(found["stream"][name] - value) / np.abs(value))) for name, value in found["memory"].items()
    )
    names = {"stream": "zipmix.stream of the file", "memory": "the table in memory"}
    rows = [
        {
            "contestant": names[name],
            "peak_gb": peak.gb,
            "fit_s": float(peak.told),
            # A pass at the start, and one in every iteration.
            "rows per second": round((n_iter + 1) * n / float(peak.told)),
            "objective": f"{float(found[name]['objective']):.15g}",
            "repeats": 1,
            "versions": versions(PROGRAMS),
        }
        for name, peak in peaks.items()
    ]
    return Outcome(
        f"A file of {size:.2g} GB: N = {n:,}, D = {d}, K = {k}",
        rows,
        [
            Finding("peak of resident memory of the streamed fit, GB", peaks["stream"].gb, 1.5, at_most=True),
            Finding("largest relative difference of objective and parameters", differ, 1e-10, at_most=True),
        ],
        (
            f"{n_iter} iterations of plain EM, {n_iter + 1} passes, from the same start. The table is {block:,} rows "
            "drawn from a mixture, again and again, each time from another row on. The peak in memory counts the file's"
            " pages as well.",
        ),
    )


def write_table(path: Path, n: int, d: int, k: int, block: int) -> dict[str, np.ndarray]:
    """Writes an (N, D) uint8 table block by block; returns a start for a fit, off the point that it is drawn from."""
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, d))
    X, theta = drawn(min(block, n), d, k)
    for number, start in enumerate(range(0, n, len(X))):
        rows = file[start : start + len(X)]
        rows[:] = np.roll(X, number, axis=0)[: len(rows)]
    file.flush()
    start = theta._replace(omega=0.5 * theta.omega + 0.25, lam=1.2 * theta.lam)
    return {name: value.numpy() for name, value in start._asdict().items()}
