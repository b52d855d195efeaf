"""Rendering the report of seven methods at N = 930, D = 20, K = 5: seconds, fits apart, and size of the page.

Target: under 10 s and under 5 MB. Run it with `python benchmarks/report.py`.
"""

import sys
import tempfile
import time
from pathlib import Path

import zipmix
from zipmix.comparison.report import write_report

METHODS = ("em", "pyro_map", "cavi", "online", "pyro_svi", "gibbs", "collapsed_gibbs")
SETTINGS = {
    "pyro_map": {"n_adam": 10, "max_iter": 50},
    "pyro_svi": {"n_steps": 50},
    "collapsed_gibbs": {"n_warmup": 2, "n_draws": 20},
}


def main() -> int:
    """Times the rendering and says whether the targets are met."""
    drawn = zipmix.simulate(930, 20, 5, prior=zipmix.Prior(alpha=5.0, f=0.25), seed=617)
    compared = zipmix.compare(drawn.X, 5, methods=METHODS, settings=SETTINGS, held_out=0)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        page = write_report(compared, Path(folder) / "report")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = page.stat().st_size / 1e6
    print(f"{len(compared.fits)} methods: {wall:.1f} s ({cpu:.1f} s of CPU), {size:.2f} MB")
    return int(wall > 10 or size > 5 or len(compared.fits) < len(METHODS))


if __name__ == "__main__":
    sys.exit(main())
