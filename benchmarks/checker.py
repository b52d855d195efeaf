"""How long a check takes: `zipmix check FILE` as a command, imports included, on whole solution files.

Run it with `python benchmarks/checker.py`. Budgets, on two cores: 15 s for a whole file, 5 s with --quick.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RIGHT = Path(__file__).parents[1] / "tests" / "solutions" / "right.py"

# Mistakes in many functions: each is looked for on ever smaller problems, which takes calls.
WRONG = (
    ("- torch.lgamma(x + 1)", ""),
    ("(s + e0 - 1)", "(s + e0)"),
    ("(m + a0 - 1)", "m"),
    ("dim=1, keepdim=True", "dim=0, keepdim=True"),
    ("+ structural.sum()", ""),
    ("return entropy_z + entropy_b", "return entropy_z"),
    ("return log_z + log_b", "return log_z"),
    ("mean[:, :missing]", "mean[:, missing:2 * missing]"),
)


def processor_seconds() -> float:
    """What all processes that have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(file: Path, *options: str) -> tuple[float, float, int]:
    """Wall-clock seconds, processor seconds and exit status of one check."""
    began, used = time.perf_counter(), processor_seconds()
    command = [sys.executable, "-m", "zipmix", "check", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "functions right" not in done.stdout:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began, processor_seconds() - used, done.returncode


def main() -> None:
    """Prints the best of three runs of each check."""
    text = RIGHT.read_text()
    for right, wrong in WRONG:
        assert right in text
        text = text.replace(right, wrong)
    with tempfile.TemporaryDirectory() as folder:
        wrong_file = Path(folder) / "wrong.py"
        wrong_file.write_text(text)
        for title, file in (("right solution", RIGHT), ("eight mistakes", wrong_file)):
            for options, budget in (((), 15), (("--quick",), 5)):
                runs = [seconds(file, *options) for _ in range(3)]
                wall, used, code = min(runs)
                kind = "quick" if options else "whole"
                print(f"{title:15} {kind}  {wall:5.1f} s of {budget:2} s, processor {used:4.1f} s, exit status {code}")


if __name__ == "__main__":
    main()
