"""Arms: methods with the options in force, checked against what the model can draft with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import methods
from harness.common.bounds import check_options
from harness.common.errors import UserError, in_one_line, say, unknown
from harness.common.hints import hinted
from harness.costs.relative import named as named_costs
from harness.load.config import ModelConfig
from harness.load.drafters import n_heads
from harness.load.eagle_head import FREQUENT
from harness.load.kinds import drafter_kind, training
from harness.load.model import Loaded
from harness.load.weights import drafter_folders
from methods.engine.grow import accuracies_of
from methods.engine.stop_net import pinned, trained_for

BASELINE = "vanilla"


def baseline_arm() -> methods.Arm:
    return methods.Arm(methods.get(BASELINE), "paper", {})


TUNED = "tuned"


def make_arms(
    names: Sequence[str],
    preset: str,
    changes: Mapping[str, str],
    config: ModelConfig,
    head: Path | None,
    tuned: Callable[[str], Mapping[str, Any]] | None = None,
    *,
    replays: bool = False,
    drafter: str | None = None,
) -> tuple[methods.Arm, ...]:
    """Methods by name with their options resolved; `all` = the exact ones of this repository that the model has weights for; a
    group's word = its own. replays: whether those that know the answer may be among them.

    head: the draft head's folder, if there is one. drafter: the kind of EAGLE head that policies draft with; None: that of
    `head`. tuned: method -> options, for the preset `tuned`; methods without options to tune keep `paper`, those of `all` that
    were not tuned are left out. A `--set` option must belong to at least one of the methods asked for, and changes those that
    have it.

    Raises:
        UserError: unknown method, preset or option, a bad value, or a method asked for by name whose weights the model lacks.
    """
    wanted: list[str] = []
    folders = drafter_folders(config, head)
    kind = drafter or (drafter_kind(head) if head is not None else None)

    def get(name: str) -> methods.Method:
        return methods.get(name).on(kind)

    for name in names:
        several = methods.names(exact=True, group="" if name == "all" else name) if name in ("all", *methods.GROUPS) else None
        if several is not None and not replays:
            several = [n for n in several if not methods.get(n).replay_only]
        known = [name] if several is None else [n for n in several if lacks(get(n), config, folders) is None]
        wanted += [n for n in known if n not in wanted]
        for n in (n for n in several or () if n not in known):
            print(f"left out: {lacks(get(n), config, folders)}", file=sys.stderr)
    chosen = [get(name) for name in wanted]
    for option in changes:
        if not any(option in m.options for m in chosen):
            nearest = unknown("option", option, {o for m in chosen for o in m.options})
            raise UserError(f"{nearest} (of {', '.join(wanted)})")
    for option in config.presets.get(preset, {}):
        everything = {o for m in methods.registered() for o in m.options}
        if option not in everything:
            raise UserError(f"preset {preset!r} of model {config.name}: {unknown('option', option, everything)}")
    arms: list[methods.Arm] = []
    untuned: list[str] = []
    for m in chosen:
        if not replays and (why := methods.only_replayed(m)):
            raise UserError(why)
        lacking = lacks(m, config, folders)
        if lacking:
            raise UserError(lacking)
        own = {k: v for k, v in changes.items() if k in m.options}
        presets: Mapping[str, Mapping[str, Any]]
        of_model = config.presets if m.needs_head else {preset: {}} if preset in config.presets else {}
        if m.group == methods.POLICIES:  # `paper` of a model is EAGLE-2's paper: each policy has one of its own
            of_model = {**of_model, "paper": {}}
        named, presets = preset, of_model
        if preset == TUNED and tuned is not None and TUNED not in m.presets:
            named = TUNED if m.tunable else "paper"
            try:
                presets = {TUNED: tuned(m.name)} if m.tunable else presets
            except UserError as e:
                if m.name in names:
                    raise
                print(f"left out: {e}", file=sys.stderr)
                untuned.append(m.name)
                continue
        options = m.resolve(named, own, presets)
        if m.group == methods.POLICIES and "costs" in options:
            options["costs"] = named_costs(options["costs"])
        try:
            options = m.pinned(options)
        except UserError as e:
            if m.name in names:
                raise UserError(f"method {m.name}: {e}") from None
            print(f"left out: method {m.name}: {e}", file=sys.stderr)
            continue
        try:
            check_options(options)
            m.build(**options)
            if m.levels is not None and m.drafter is not None:
                _check_levels(m, options, n_heads(folders[m.drafter]), folders[m.drafter])
        except UserError:
            raise
        except Exception as e:  # a builder, perhaps a user's own, may raise anything
            why = str(e) if isinstance(e, ValueError) else f"its code in {m.file} raised {in_one_line(e)}"
            raise UserError(f"method {m.name}: {why}") from None
        label = named + "".join(f"+{k}={options[k]}" for k in sorted(own) if k not in m.places)
        arms.append(methods.Arm(m, label, options))
    if untuned and not any(a.preset.startswith(TUNED) for a in arms):
        tune = hinted("tune", "--model", config.given, "--method", "all")
        raise UserError(f"none of {', '.join(untuned)} was tuned for this machine: {tune} does it")
    return tuple(arms)


def check_given(head: Path | None, chosen: Iterable[methods.Method]) -> None:
    """Raises UserError where none of the methods drafts with what `--head` holds."""
    chosen = list(chosen)
    if head is not None and (kind := drafter_kind(head)) not in {m.drafter for m in chosen}:
        names = ", ".join(dict.fromkeys(m.name for m in chosen))
        raise UserError(f"--head {head} holds a {methods.DRAFTERS[kind]}, and none of {names} drafts with one")


def check_heads(arms: Sequence[methods.Arm], loaded: Loaded) -> None:
    """Raises UserError where the heads that were loaded cannot draft an arm's tree: too few, or none to choose a tree by.
    Policies trained for another head are told of."""
    tell_other_heads(arms, loaded)
    for arm in arms:
        drafter = loaded.drafter_of(arm.method.drafter)
        try:
            _check_levels(arm.method, arm.options, getattr(drafter, "n_heads", None), loaded.config.name)
            if arm.method.levels is not None and arm.method.levels(arm.options) == 0:
                accuracies_of(drafter)
        except ValueError as e:
            raise UserError(f"method {arm.name}: {e}") from None


def tell_other_heads(arms: Sequence[methods.Arm], loaded: Loaded) -> None:
    """Say, a line each, which policies were trained for another head or another tree than they are given. They are exact all the
    same, but when they stop was learned elsewhere."""
    lines: dict[str, None] = {}
    for arm in arms:
        if dict(arm.method.pins).get("weights") is pinned:
            given = trained_for(str(arm.options["weights"]))
            head, tree = loaded.drafter_id(arm.method.drafter), f"{arm.options['top_k']}/{arm.options['depth']}"
            other = []
            if given.get("head_id") not in (None, head):
                other.append(f"for head {given['head_id']} of {given.get('model', 'another model')}, and this one is {head}")
            if "tree" in given and given["tree"].rpartition("/")[0] != tree:
                other.append(f"for trees of top_k/depth {given['tree'].rpartition('/')[0]}, and these are {tree}")
            if other:
                lines[f"{arm.name}: weights={arm.options['weights']} were trained {'; '.join(other)}"] = None
    for line in lines:
        say(f"{line}: `harness train-policy radar` trains others")


def _check_levels(m: methods.Method, options: Mapping[str, Any], heads: int | None, where: Any) -> None:
    """Raises ValueError where the tree has more levels than there are heads to draft them (None: not known yet)."""
    n = m.levels(options) if m.levels is not None else 0
    if heads is not None and n > heads:
        raise ValueError(f"its tree has {n} levels, each of which takes a head, and {where} has {heads}: choose another tree")


def lacks(m: methods.Method, config: ModelConfig, folders: Mapping[str, Path]) -> str | None:
    """What the model lacks of what a method needs, and where to get it; None where nothing."""
    if m.drafter is None:
        return None
    what = methods.DRAFTERS[m.drafter]
    train = training(m.drafter, config.given)
    if m.drafter not in folders:
        return f"method {m.name} needs a {what} and model {config.name} has none: {train}"
    listed = folders[m.drafter] / FREQUENT
    if m.needs_frequent and not listed.exists():
        needs = f"method {m.name} needs a list of frequent tokens and there is no {listed}"
        return f"{needs}, which a head of `harness train` comes with: {train}"
    return None
