"""Whether zipmix has become slower: the ratios on record, measured again.

Seconds are never compared. A case in which a ratio looks lost is measured once more before it is called so, since
another process may have been at work.
"""

from collections.abc import Callable
from typing import Any

from harness import Finding, Outcome
from record import findings

# The part of a ratio that may be lost.
LOSS = 0.20


def check(committed: dict[str, Any], cases: dict[str, Callable[[], Outcome]]) -> tuple[list[str], bool]:
    """Measures cases again and compares their ratios with those on record.

    Args:
        committed: cases of benchmarks.json.
        cases: what measures each of them.
    Returns:
        A line for each ratio on record, and whether none is lost.
    """
    lines, kept = [], True
    for name, measure in cases.items():
        if name not in committed:
            lines.append(f"new   {name}: not on record; run make bench")
            continue
        then, outcome = [finding for finding in findings(committed[name]) if finding.ratio], measure()
        now = ratios(outcome)
        if any(old.what in now and lost(now[old.what], old) for old in then):
            again = ratios(measure())
            now = {what: max(value, again[what]) for what, value in now.items()}
        lines += outcome.left_out
        for old in then:
            line = f"{name}: {old.what}: "
            if old.what in now:
                gone = lost(now[old.what], old)
                line += f"{now[old.what]:.2f} now, {old.measured:.2f} on record"
            else:
                gone = not any(old.what.endswith(sentence.split(": left out")[0]) for sentence in outcome.left_out)
                line += f"not measured now, {old.measured:.2f} on record"
            lines.append(f"{'LOST' if gone else 'kept' if old.what in now else 'none'}  {line}")
            kept = kept and not gone
    return lines, kept


def ratios(outcome: Outcome) -> dict[str, float]:
    """The ratios of a case by name."""
    return {finding.what: finding.measured for finding in outcome.findings if finding.ratio}


def lost(now: float, then: Finding) -> bool:
    """Whether a ratio has become worse by more than is allowed."""
    return now < (1 - LOSS) * then.measured
