"""One generation under watch: decoded, timed, counted and checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter, process_time, thread_time  # by name, before any file of a user's is loaded
from typing import Any

import torch

import methods
from harness.common.errors import UserError, users_code
from harness.load.model import Loaded
from harness.watch import originals
from harness.watch.check import (
    BadGeneration,
    Clocks,
    Names,
    check_cores,
    check_finite,
    check_form,
    check_hidden,
    check_seen,
    check_times,
)
from harness.watch.seen import Seen, watched_drafter, watched_target
from methods.base import Decode, Generation, SamplerParams
from methods.engine.engines import n_recordings, refused_late


class ModeChanged(UserError):
    """Steps are no longer launched as those that were measured before. It ends whatever compares their times."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A generation that passed every check. `wall_s`, `cpu_s`: of the whole of it, less what keeping its trees took.

    `n_recordings`: CUDA graphs that were recorded meanwhile, or refused, which took time that is none of the method's.
    `peak_bytes`: the most memory that was allocated meanwhile, weights included (`HFTarget.peak_bytes`).
    """

    generation: Generation
    wall_s: float
    cpu_s: float
    n_recordings: int
    peak_bytes: int


def names_of(loaded: Loaded, kind: str | None) -> Names:
    """What texts call a model's target, and its drafter of a kind."""
    name = loaded.config.name
    return Names(f"the target {name}", f"the {methods.DRAFTERS.get(kind or '', 'drafter')} of {name}")


def built(method: methods.Method, options: Mapping[str, Any], target: Any) -> Decode:
    """A method's decode, built off the clock.

    Raises:
        BadGeneration: the builder ran the target: what it decodes there no clock would see.
    """
    before = _n_forwards(target)
    decode = method.build(**options)
    if n := _n_forwards(target) - before:
        raise BadGeneration(f"its builder ran {n} forwards of the target, which no clock saw")
    return decode


def settled(
    build: Callable[[], Decode], prompt_ids: list[int], target: Any, drafter: Any, params: SamplerParams, names: Names, *,
    external: bool = False,
) -> Watched:  # fmt: skip
    """`watched`, and once more where something was recorded meanwhile: whoever takes times takes them of this. build: makes the
    decode, anew for each.

    Raises:
        BadGeneration: as `watched` does; or the second one records, too.
        ModeChanged: recordings were refused after all were prepared.
    """
    for _ in range(2):
        try:
            seen = watched(build(), prompt_ids, target, drafter, params, names, external=external)
        finally:
            if why := refused_late(target):
                raise ModeChanged(
                    f"the driver refused a CUDA graph after others had been measured with ({why}): times before it and after it "
                    "do not compare. Run it again, or with HARNESS_ENGINE=torch, which launches steps call by call"
                )
        if not seen.n_recordings:
            return seen
    raise BadGeneration(f"{seen.n_recordings} CUDA graphs were recorded while its clock ran, also when it was made again")


def watched(
    decode: Decode, prompt_ids: list[int], target: Any, drafter: Any, params: SamplerParams, names: Names, *,
    external: bool = False, alone: bool = True,
) -> Watched:  # fmt: skip
    """Decode, and check what came of it.

    target, drafter: a model's, or what stands for them. external: another's loop, whose forwards are not counted.
    alone: nothing else runs meanwhile. Then whatever runs the target's module is the method, and its times are checked.

    Raises:
        BadGeneration: it cannot be recorded; the text says why. Whatever else the method raises is raised too.
    """
    seen, vocab_size = Seen(), target.vocab_size
    its_target = watched_target(target, seen, params.keep_trees)
    its_drafter = None if drafter is None else watched_drafter(drafter, seen)
    inside, started_before, settings = _seconds(target, drafter), _n_forwards(target), _settings()
    recorded_before = n_recordings(target)
    target.reset_peak()
    with _module_runs(target if alone and not external else None) as runs:
        target.synchronise()
        started, cpu_started, all_started = perf_counter(), thread_time(), process_time()
        try:
            with users_code(), nullcontext() if external else target.decoding():
                made = decode(list(prompt_ids), its_target, its_drafter, params)
        except Exception:
            _put_back(settings)
            check_finite(seen, names)  # which is why it failed, where it is so
            raise
        target.synchronise()
        wall, cpu, of_all = perf_counter() - started, thread_time() - cpu_started, process_time() - all_started
    peak = target.peak_bytes()
    if changed := _put_back(settings):
        raise BadGeneration(f"it left {changed[0]} another than it was: whatever is timed after it would be slower or faster")
    if alone and target.device.type == "cpu":
        check_cores(wall, of_all, settings["the number of threads"])
    after = _seconds(target, drafter)
    check_finite(seen, names)
    with users_code():  # what was returned may be of a user's own types
        made = check_form(made, params, vocab_size, external)
    n_own = seen.n_prefills + len(seen.sizes) if target.runs_module else 0
    clocks = Clocks(
        wall, after[0] - inside[0], after[1] - inside[1], max(wall - cpu, 0.0), _n_forwards(target) - started_before,
        len(runs) - n_own,
    )  # fmt: skip
    check_seen(made, seen, prompt_ids, params, external)
    check_hidden(clocks, seen, external)
    if alone:
        check_times(made, clocks, seen)
    if changed := [*originals.replaced(), *originals.shadowed(target, drafter)]:
        raise BadGeneration(changed[0])
    keeping = made.trace.keeping_s if made.trace else 0.0
    return Watched(made, wall - keeping, max(cpu - keeping, 0.0), n_recordings(target) - recorded_before, peak)


def _settings() -> dict[str, Any]:
    """What a method must leave as it found it: it would slow or speed whatever comes after."""
    return {
        "the number of threads": torch.get_num_threads(), "sys.setprofile": sys.getprofile(), "sys.settrace": sys.gettrace(),
        "torch's default dtype": torch.get_default_dtype(), "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        "torch's matmul precision": torch.get_float32_matmul_precision(), "the working folder": os.getcwd(),
    }  # fmt: skip


def _put_back(settings: Mapping[str, Any]) -> list[str]:
    """Undo what a method changed of `_settings`; -> the names of those."""
    changed = [name for name, value in _settings().items() if value != settings[name]]
    if changed:
        torch.set_num_threads(settings["the number of threads"])
        sys.setprofile(settings["sys.setprofile"])
        sys.settrace(settings["sys.settrace"])
        torch.set_default_dtype(settings["torch's default dtype"])
        torch.use_deterministic_algorithms(settings["torch's determinism"])
        torch.set_float32_matmul_precision(settings["torch's matmul precision"])
        os.chdir(settings["the working folder"])
    return changed


def _seconds(target: Any, drafter: Any) -> tuple[float, float]:
    return target.forward_s, drafter.forward_s if drafter is not None else 0.0


def _n_forwards(target: Any) -> int:
    n: int = target._clock.n_started
    return n


@contextmanager
def _module_runs(target: Any) -> Iterator[list[None]]:
    """Grows by one whenever the target's module is run. None: nothing is looked at."""
    runs: list[None] = []
    if target is None:
        yield runs
        return
    hook = target.body.layers[0].register_forward_pre_hook(lambda *_: runs.append(None))
    try:
        yield runs
    finally:
        hook.remove()
