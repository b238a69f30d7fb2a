"""Runs in which an engine elsewhere decodes: what they take of a request, and their baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import methods
from harness.common.errors import UserError
from harness.common.names import SERVER, SERVER_PLAIN
from harness.run.request import RunRequest
from methods import Arm

if TYPE_CHECKING:  # it imports torch
    from harness.run.plan import RunSpec


def served_base(request: RunRequest, arms: Sequence[Arm]) -> Arm | None:
    """The baseline of a run in which an engine elsewhere decodes; None where no engine does.

    It is the same engine with speculation off, at `baseline_url`. Where there is none and none is wanted, it is the first arm,
    which is not measured twice.

    Raises:
        UserError: methods that decode here stand beside it, an option that an engine elsewhere does not take, or no baseline.
    """
    served = [arm for arm in arms if arm.method.served]
    if not served:
        return None
    if own := [arm.name for arm in arms if not arm.method.served]:
        raise UserError(f"{served[0].name} is an engine elsewhere, and {', '.join(own)} run here: measure them by two commands")
    given = {"--dtype": request.dtype != "auto", "--threads": request.threads is not None, "--head": request.head is not None,
             "--trees": request.trees, "--preset": request.preset != "paper"}  # fmt: skip
    if named := [option for option, is_given in given.items() if is_given]:
        raise UserError(f"{named[0]} is of decoding here; what an engine elsewhere does is set where it is started")
    if len(served) > 1:
        raise UserError(f"{' and '.join(arm.name for arm in served)} are asked for: one command measures one engine, and "
                        f"{SERVER_PLAIN} along with it")  # fmt: skip
    (arm,) = served
    if arm.name == SERVER_PLAIN:
        return arm
    url = arm.options.get("baseline_url", "")
    if url and not request.baseline:
        raise UserError("--no-baseline does without what --set baseline_url names: one of the two")
    if url:
        m = methods.get(SERVER_PLAIN)
        return Arm(m, "paper", {**m.options, **{k: v for k, v in arm.options.items() if k in m.options}, "url": url})
    if request.baseline:
        why = "the same engine with speculation off"
        raise UserError(f"{SERVER} needs a baseline, {why}: --set baseline_url=URL, or --no-baseline")
    return arm


def check_turns(spec: RunSpec) -> None:
    """
    Raises:
        UserError: a task has later turns, which hold the baseline's answers, and an engine elsewhere has no baseline.
    """
    if not spec.is_served or spec.base.name == SERVER_PLAIN:
        return
    for prompts in spec.prompt_sets:
        if any(len(prompt.turns) > 1 for prompt in prompts.prompts):
            raise UserError(f"task {prompts.task} has later turns, which hold the baseline's answers: --set baseline_url=URL")


AUDITED = {"quick": (2, 64, 1), "full": (20, 128, 3)}
"""Level of an audit -> prompts a task, budget, and repeats at T = 1."""


def audit_requests(level: str, model: str, changes: tuple[str, ...], out: Path) -> list[RunRequest]:
    """What is measured of an engine to audit it: greedy and sampled outputs of every task's bundled prompts."""
    limit, budget, repeats = AUDITED[level]
    greedy = RunRequest(methods=(SERVER,), model=model, limit=limit, max_new_tokens=budget, source="bundled", changes=changes,
                        on_overflow="skip", out=out)  # fmt: skip
    return [greedy, replace(greedy, temperature=1.0, repeats=repeats)]
