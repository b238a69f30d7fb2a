"""Whether a generation had the machine to itself: wall seconds beside the CPU seconds of the thread that decodes."""

from __future__ import annotations

from collections.abc import Iterable

from harness.ledger.record import Record

SHARED = 1.05
"""Wall seconds per CPU second from which on other work is said to have shared the machine."""


def was_shared(records: Iterable[Record]) -> bool:
    """Whether other work took the CPU from these generations. Earlier records tell no CPU seconds: nothing is said of them.

    The decoding thread computes or spins while it waits for the other threads, so on a machine of its own its CPU time is
    nearly the wall time. It falls behind where this thread, or one that it waits for, has to wait for a core.
    """
    timed = [(r["wall_s"], r["cpu_s"]) for r in records if r.get("cpu_s") and r["wall_s"]]
    return sum(wall or 0.0 for wall, _ in timed) > SHARED * sum(cpu or 0.0 for _, cpu in timed)
