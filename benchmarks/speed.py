"""How fast zipmix is, beside its limit and its peers: `make bench` writes results/benchmarks.json, .md and scaling.png.

Contestants of a case run in turn in one process, and a ratio is that of the medians, so that a busy machine slows all
of them alike. `make bench-check` measures the ratios again and fails where one is over 20 % worse than the committed
one. Peers that are not installed are left out; pip install '.[bench]' has them.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

import zipmix
from zipmix.inference.em import em_step, evaluate
from zipmix.inference.result import pose
from zipmix.inference.start import starts
from zipmix.models.counts import Counts, as_counts, as_table
from zipmix.models.kernel import Logs, expectation, logs
from zipmix.models.parameters import Parameters
from zipmix.models.rows import threads_for_parts
from zipmix.models.zip_mixture import log_density

RESULTS = Path(__file__).parents[1] / "results"
LOSS = 1.2
PEERS = ("torch", "pyro-ppl", "scikit-learn", "scipy", "numpy", "numpyro", "pomegranate", "stepmix")


class Ratio(NamedTuple):
    """One number that a case is about: how many times faster one contestant is than another."""

    slower: str
    faster: str
    target: float | None  # at least; None where there is nothing to hold


class Case(NamedTuple):
    """Contestants for the same work."""

    title: str
    contestants: dict[str, Callable[[], object]]
    ratios: tuple[Ratio, ...]
    repeats: int = 7
    scale: Mapping[str, float] = MappingProxyType(
        {}
    )  # what a contestant's time is multiplied with, where it does a part of the work


def problem(n: int, d: int, k: int, density: float = 0.5) -> tuple[np.ndarray, Logs, Parameters]:
    """Counts from a mixture, and the tables of a point."""
    rng = np.random.default_rng(0)
    lam, omega = (
        rng.gamma(2.0, 2.0, size=(k, d)) + 0.05,
        rng.uniform(0, 2 * density / 0.87, size=(k, d)).clip(0.001, 0.999),
    )
    z = rng.integers(k, size=n)
    X = (rng.poisson(lam[z]) * (rng.random((n, d)) < omega[z])).astype(np.uint8)
    theta = Parameters(*(torch.from_numpy(v) for v in (np.full(k, 1 / k), omega, lam)))
    return X, logs(theta), theta


def counted(X: Any) -> Counts:
    return as_counts(as_table(X).X)


def pass_case() -> Case:
    N, D, K = 200_000, 100, 20
    X, tables, theta = problem(N, D, K)
    A = torch.from_numpy(np.concatenate([X, X > 0], axis=1).astype(np.float64))
    W, R = torch.rand(2 * D, K, dtype=torch.float64), torch.rand(N, K, dtype=torch.float64)
    counts = counted(X)
    return Case(
        f"One pass, dense: N = {N:,}, D = {D}, K = {K}",
        {
            "bare products A @ W, R.T @ A (float64)": lambda: (A @ W, R.T @ A),
            "zipmix pass": lambda: expectation(counts, tables),
            "zipmix pass, float32": lambda: expectation(counts, tables, dtype=torch.float32),
            "scikit-learn GaussianMixture(diag), one iteration": gaussian(X, theta),
        },
        (
            Ratio("bare products A @ W, R.T @ A (float64)", "zipmix pass", 1 / 1.15),
            Ratio("zipmix pass", "zipmix pass, float32", 1.7),
            Ratio("scikit-learn GaussianMixture(diag), one iteration", "zipmix pass", None),
        ),
        scale={"scikit-learn GaussianMixture(diag), one iteration": 1 / 2},
    )


def gaussian(X: np.ndarray, theta: Parameters) -> Callable[[], object]:
    """Two iterations from a given point, without its k-means."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mean = (theta.omega * theta.lam).numpy()
    model = GaussianMixture(
        len(mean), covariance_type="diag", max_iter=2, tol=0.0, init_params="random_from_data", random_state=0,
        weights_init=theta.pi.numpy(), means_init=mean, precisions_init=1 / (mean + 1),
    )  # fmt: skip
    table = X.astype(np.float64)

    def run() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(table)

    return run


def sparse_case() -> Case:
    N, D, K = 200_000, 100, 20
    X, tables, _ = problem(N, D, K, density=0.025)
    dense, sparse = counted(X), counted(sp.csr_array(X))
    return Case(
        f"One pass, {(X > 0).mean():.1%} non-zero: N = {N:,}, D = {D}, K = {K}",
        {"dense": lambda: expectation(dense, tables), "sparse": lambda: expectation(sparse, tables)},
        (Ratio("dense", "sparse", 5.0),),
    )


def restarts_case() -> Case:
    X = zipmix.simulate(930, 20, 10, seed=0).X
    posed = pose(X, 10, zipmix.Prior())
    theta = starts(posed.counts, posed.prior, n_components=10, n_starts=50, init="prior", start=None, seed=0)
    one = [Parameters(*(value[r : r + 1] for value in theta)) for r in range(50)]

    def run(point: Parameters, n: int = 20) -> None:
        with threads_for_parts():
            state = evaluate(posed, point, torch.ones(len(point.pi), dtype=torch.float64))
            for _ in range(n - 1):
                state = em_step(posed, state)

    batch, alone = "zipmix, 50 starts in one batch", "zipmix, one start after another"
    plain, together = "broadcast N x K x D, one start after another", "broadcast R x N x K x D, all starts at once"
    gradient = "Pyro, one enumerated gradient step of one start"
    return Case(
        "50 starts, 20 iterations: N = 930, D = 20, K = 10",
        {
            batch: lambda: run(theta),
            alone: lambda: [run(point) for point in one],
            plain: lambda: broadcast(X, one[0], posed.prior, 4),
            together: lambda: broadcast(X, theta, posed.prior, 1),
            gradient: lambda: pyro_step(X, one[0], posed.prior),
        },
        (
            Ratio(alone, batch, 4.0),
            Ratio(plain, batch, 100.0),
            Ratio(together, batch, 100.0),
            Ratio(gradient, batch, None),
        ),
        repeats=5,
        scale={plain: 50 * 20 / 4, together: 20, gradient: 50 * 20},
    )


def broadcast(X: torch.Tensor, theta: Parameters, prior: zipmix.Prior, n: int) -> None:
    """EM as it is written on paper: every density an N x K x D table."""
    alpha, a, b, e, f = prior
    x = X[:, None]
    pi, omega, lam = theta.pi[:, None], theta.omega[:, None], theta.lam[:, None]
    for _ in range(n):
        on = omega.log() + torch.special.xlogy(x, lam) - lam - torch.lgamma(x + 1)
        cell = torch.where(x > 0, on, torch.logaddexp(on, torch.log1p(-omega)))
        joint = pi.log() + cell.sum(-1)
        joint.logsumexp(-1).sum(-1)
        R = joint.softmax(-1)[..., None]
        b_NKD = torch.where(x > 0, 1.0, (on - cell).exp())
        n_K, m, s = R.sum(1, keepdim=True), (R * b_NKD).sum(1, keepdim=True), (R * b_NKD * x).sum(1, keepdim=True)
        pi = (n_K[..., 0] + alpha - 1) / (n_K[..., 0] + alpha - 1).sum(-1, keepdim=True)
        omega, lam = (m + a - 1) / (n_K + a + b - 2), (s + e - 1) / (m + f)


def pyro_step(X: torch.Tensor, theta: Parameters, prior: zipmix.Prior) -> None:
    """Value and gradient of the enumerated Pyro program."""
    point = Parameters(*(value[0].clone().requires_grad_() for value in theta))
    log_density(X, point, prior).backward()


def acceleration() -> dict[str, Any]:
    """Passes to 1e-7 of the optimum, plain EM over SQUAREM, on fourteen problems."""
    tables = [(zipmix.load_data("nmes1988").X[:1500], 4), (zipmix.load_data("digits").X[:300], 6)]
    for seed in range(12):
        prior = zipmix.Prior(1.5, 2.0, 2.0 + seed % 3, 2.0 + seed % 2, 0.5)
        tables.append(
            (zipmix.simulate(250 + 50 * seed, 3 + seed % 9, 2 + seed % 5, prior=prior, seed=seed).X, 2 + seed % 5)
        )
    ratios, losses = [], []
    for seed, (X, k) in enumerate(tables):
        settings = dict(n_starts=5, race=None, split_merge=0, max_iter=4000, tolerance=1e-12, seed=seed)
        plain, bold = (zipmix.fit(X, k, accelerate=fast, **settings) for fast in (False, True))
        goal = min(plain.objective, bold.objective) * (1 + 1e-7)
        passes = [int((fit.trace >= goal).to(torch.int8).argmax()) for fit in (plain, bold)]
        ratios.append(max(1, passes[0]) / max(1, 2 * passes[1]))
        losses.append((plain.objective - bold.objective) / abs(plain.objective))
    return {
        "passes, plain EM / SQUAREM": ratios,
        "median": statistics.median(ratios),
        "largest relative loss of objective": max(losses),
    }


STRATEGIES: dict[str, dict[str, Any]] = {
    "20 starts to the end": dict(n_starts=20, race=None, split_merge=0),
    "60 starts, 5 iterations, best 5 go on": dict(n_starts=60, race=(5, 5), split_merge=0),
    "the same, and 2 rounds of split and merge": dict(n_starts=60, race=(5, 5), split_merge=2),
    "6 starts of small-em": dict(n_starts=6, init="small-em", race=None, split_merge=0),
    "6 starts, 20 passes of annealing": dict(n_starts=6, annealing=20, race=None, split_merge=0),
    "20 draws from the prior": dict(n_starts=20, init="prior", race=None, split_merge=0),
}


def strategies() -> dict[str, Any]:
    """Gap to the best optimum that any strategy found, and processor seconds, over two seeds of six problems."""
    shapes = [(500, 8, 6), (1000, 10, 8), (600, 30, 8), (500, 15, 6), (1500, 12, 9)]
    tables = [(zipmix.simulate(n, d, k, prior=zipmix.Prior(a=1.5, b=4.0), seed=n).X, k) for n, d, k in shapes]
    tables.append((zipmix.load_data("digits").X[:300], 10))
    gaps: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    seconds = dict.fromkeys(STRATEGIES, 0.0)
    for X, k in tables:
        for seed in (0, 1):
            found = {}
            for name, settings in STRATEGIES.items():
                began = time.process_time()
                found[name] = zipmix.fit(X, k, seed=seed, tolerance=1e-10, **settings).objective
                seconds[name] += time.process_time() - began
            for name, objective in found.items():
                gaps[name].append(max(found.values()) - objective)
    return {
        name: {
            "mean gap": statistics.fmean(gaps[name]),
            "largest gap": max(gaps[name]),
            "best in": sum(gap < 0.01 for gap in gaps[name]),
            "of": len(gaps[name]),
            "processor seconds": seconds[name],
        }
        for name in STRATEGIES
    }


def scaling() -> dict[str, Any]:
    """Seconds of a pass along N, D, K and density, with the fitted exponents."""
    base = dict(n=50_000, d=50, k=10, density=0.5)
    grids = {
        "n": (12_500, 50_000, 200_000),
        "d": (25, 50, 100, 200),
        "k": (5, 10, 20, 40),
        "density": (0.01, 0.03, 0.1, 0.3),
    }
    curves = {}
    for name, values in grids.items():
        runs = {}
        for value in values:
            X, tables, _ = problem(**(base | {name: value}))
            runs[value] = (counted(sp.csr_array(X) if name == "density" else X), tables)
        times: dict[float, list[float]] = {value: [] for value in values}
        for _ in range(5):
            for value, arguments in runs.items():
                times[value].append(clocked(lambda arguments=arguments: expectation(*arguments)))
        medians = [statistics.median(times[value]) for value in values]
        slope = np.polyfit(np.log(values), np.log(medians), 1)[0]
        curves[name] = {"values": list(values), "seconds": medians, "exponent": float(slope)}
    return curves


def large() -> dict[str, Any]:
    """A fit of a 6 GB file: peak of resident memory."""
    N, D, K = 60_000_000, 100, 5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(N, D))
        block = problem(1_000_000, D, K)[0]
        for start in range(0, N, len(block)):
            file[start : start + len(block)] = np.roll(block, start // len(block), axis=0)
        del file
        began = time.perf_counter()
        done = fresh(
            f"import zipmix; zipmix.fit(zipmix.stream({str(path)!r}), {K}, n_starts=1, split_merge=0, max_iter=1)"
        )
        return {"file, GB": N * D / 1e9, "peak resident, GB": done / 1e9, "seconds": time.perf_counter() - began}


def wide() -> dict[str, Any]:
    """A fit of a wide sparse table: peak of resident memory, the table included."""
    code = (
        "import numpy as np, scipy.sparse as sp, zipmix\n"
        "rng = np.random.default_rng(0)\n"
        "N, D, each = 100_000, 20_000, 600\n"
        "columns = np.sort(rng.integers(D // each, size=(N, each), dtype=np.int32) + np.arange(each, dtype=np.int32)"
        " * (D // each), axis=1).ravel()\n"
        "counts = rng.geometric(0.5, size=N * each).astype(np.uint8)\n"
        "X = sp.csr_array((counts, columns, np.arange(0, N * each + 1, each, dtype=np.int32)), shape=(N, D))\n"
        "zipmix.fit(X, 20, n_starts=1, split_merge=0, max_iter=2)\n"
    )
    began = time.perf_counter()
    return {"N x D, K": "100,000 x 20,000 at 3 %, 20", "peak resident, GB": fresh(code) / 1e9,
            "seconds": time.perf_counter() - began}  # fmt: skip


def fresh(code: str) -> float:
    """Peak of resident memory, bytes, of a new process that runs the code."""
    import subprocess

    tail = "\nprint(*(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def clocked(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(case: Case) -> dict[str, Any]:
    """Medians of interleaved repeats, and the case's ratios."""
    times: dict[str, list[float]] = {name: [] for name in case.contestants}
    for repeat in range(case.repeats + 1):
        for name, function in case.contestants.items():
            seconds = clocked(function)
            if repeat:  # the first round warms up
                times[name].append(seconds * case.scale.get(name, 1.0))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "title": case.title,
        "repeats": case.repeats,
        "seconds": medians,
        "ratios": [
            {"slower": r.slower, "faster": r.faster, "ratio": medians[r.slower] / medians[r.faster], "target": r.target}
            for r in case.ratios
        ],
    }


CASES = {"pass": pass_case, "sparse": sparse_case, "restarts": restarts_case}
EXTRAS = {"acceleration": acceleration, "strategies": strategies, "scaling": scaling, "wide": wide, "large": large}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# Benchmarks", "",
        f"`{results['command']}` on {results['processor']}, {results['threads']} threads; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + ".",
        "Medians of interleaved repeats in one process. Compare ratios, not seconds.", "",
    ]  # fmt: skip
    for case in results["cases"].values():
        lines += [f"## {case['title']}", "", "| contestant | median, s |", "|---|---|"]
        lines += [f"| {name} | {seconds:.4g} |" for name, seconds in case["seconds"].items()]
        lines += ["", "| | times faster | target |", "|---|---|---|"]
        for r in case["ratios"]:
            target = "" if r["target"] is None else f"{r['target']:.2f}"
            lines += [f"| {r['faster']} than {r['slower']} | {r['ratio']:.2f} | {target} |"]
        lines += [""]
    for name, values in results["extras"].items():
        lines += [f"## {name.capitalize()}: {' '.join((EXTRAS[name].__doc__ or '').split())}", ""]
        if all(isinstance(value, dict) for value in values.values()):
            columns = list(next(iter(values.values())))
            lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            lines += [
                f"| {key} | " + " | ".join(shown(value[c]) for c in columns) + " |" for key, value in values.items()
            ]
        else:
            lines += [f"- {key}: {shown(value)}" for key, value in values.items()]
        lines += [""]
    if "scaling" in results["extras"]:
        lines += ["![Seconds of a pass against N, D, K and density](scaling.png)", ""]
        draw(results["extras"]["scaling"])
    (RESULTS / "benchmarks.md").write_text("\n".join(lines))


def shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(shown(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(curves: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True):
        axes.loglog(curve["values"], curve["seconds"], "o-")
        label = name if name == "density" else name.upper()
        axes.set(xlabel=label, title=f"seconds ~ {label}^{curve['exponent']:.2f}")
    figure.axes[0].set_ylabel("seconds of a pass")
    figure.savefig(RESULTS / "scaling.png", dpi=120)


def check() -> int:
    """Measures the ratios again; 1 where one is worse than the committed one by more than the loss allowed."""
    committed = json.loads((RESULTS / "benchmarks.json").read_text())["cases"]
    worse = 0
    for name, make in CASES.items():
        for now, then in zip(measure(make())["ratios"], committed[name]["ratios"], strict=True):
            lost = now["ratio"] * LOSS < then["ratio"]
            worse += lost
            print(f"{'LOST' if lost else 'kept'}  {now['faster']} than {now['slower']}: "
                  f"{now['ratio']:.2f} times, committed {then['ratio']:.2f}")  # fmt: skip
    return int(worse > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed ratios and write nothing")
    parser.add_argument("--only", nargs="*", help=f"some of {', '.join([*CASES, *EXTRAS])}; the others are kept")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    path = RESULTS / "benchmarks.json"
    results = json.loads(path.read_text()) if arguments.only and path.exists() else {"cases": {}, "extras": {}}
    results |= {
        "command": "make bench",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    for name in arguments.only or [*CASES, *EXTRAS]:
        print(f"==> {name}", file=sys.stderr)
        if name in CASES:
            results["cases"][name] = measure(CASES[name]())
        else:
            results["extras"][name] = EXTRAS[name]()
        write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
