"""Which findings count: those of the same weights, made by the code that is here, on this machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import methods
from harness.audit.jobs import About, Finding, Job
from harness.audit.levels import Prompt
from harness.audit.probe.subject import Subject
from harness.common.source_hash import Package, closure_sha
from harness.ledger.record import canonical_hash
from harness.load.identity import TargetIdentity
from harness.load.model import Loaded


@cache
def audit_sha() -> str:
    """Hash of the code that makes findings: the audit's own, and the native engine it replays on. Others are made anew."""
    return canonical_hash([_sha("findings", "law", "ledger_pairs"), methods.native_sha()])[:16]


@cache
def lanes_sha() -> str:
    """Hash of the code that has several generations share forwards. It concerns the score test alone."""
    return _sha("lanes")


def _sha(*modules: str) -> str:
    probe = Path(__file__).parent / "probe"
    return closure_sha(tuple(probe / f"{name}.py" for name in modules), Package("harness.audit.probe", probe))


def machine(threads: int) -> dict[str, Any]:
    """What findings hold for besides weights and code: another machine rounds in another way."""
    import torch

    from harness.common.machine import cpu_name

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": gpu or cpu_name(), "threads": threads, "torch": torch.__version__}


@dataclass(frozen=True, slots=True)
class Origin:
    """The models and the machine that findings come from. `targets`: dtype -> the target's identity, in which its engine is.
    `row_invariant`: the dtypes in which that engine is. `drafters`, `frequent`: kind of drafter -> its identity, and the hash of
    its list of frequent tokens. `where`: see `machine`. `layers`: dtype -> how many of the target's layers are run in it, where
    not all are."""

    model: str
    targets: Mapping[str, TargetIdentity]
    row_invariant: frozenset[str]
    drafters: Mapping[str, str | None]
    frequent: Mapping[str, str | None]
    where: Mapping[str, Any]
    layers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: Loaded, threads: int, dtypes: Sequence[str], layers: Mapping[str, int] = MappingProxyType({})) -> Origin:
        """dtypes: all that are audited; the model is loaded in one of them. layers: as the field has them."""
        targets = {dtype: loaded.identity_in(dtype) for dtype in dtypes}
        row_invariant = frozenset(dtype for dtype in dtypes if loaded.is_row_invariant_in(dtype))
        drafters = {kind: loaded.drafter_id(kind) for kind in methods.DRAFTERS}
        frequent = {kind: loaded.frequent_sha_of(kind) for kind in methods.DRAFTERS}
        return cls(loaded.config.name, targets, row_invariant, drafters, frequent, machine(threads),
                   layers)  # fmt: skip

    @property
    def head(self) -> str | None:
        return self.drafters.get(methods.EAGLE)

    @property
    def facts(self) -> dict[str, Any]:
        """For the page."""
        dtypes: dict[str, list[str]] = {}
        for dtype, target in self.targets.items():
            dtypes.setdefault(target.engine, []).append(dtype)
        engines = "; ".join(f"{engine} ({', '.join(names)})" for engine, names in dtypes.items())
        first = next(iter(self.targets.values()))
        return {"model": self.model, "target": first.id, "head": self.head, **self.where, "engine": engines}

    def about_law(self, kind: str, s: Subject, **more: Any) -> About:
        """Of a finding on stand-ins, which holds for every model and machine."""
        return {"kind": kind, **more, "method": s.name, "code": s.code, "audit": audit_sha()}

    def about(self, kind: str, s: Subject, dtype: str, prompt: Prompt, new_tokens: int, **more: Any) -> About:
        """Of one output of a method."""
        name, ids = prompt
        return {
            "kind": kind, "method": s.name, "dtype": dtype, "prompt": name, "prompt_sha": canonical_hash(ids)[:16],
            "model": self.model, "target": self.targets[dtype].id, "head": self.drafters.get(s.kind or ""),
            "frequent": self.frequent.get(s.kind or "") if s.needs_frequent else None, "options": dict(s.options), "code": s.code,
            "new_tokens": new_tokens, "audit": audit_sha(), **self.where, **self.cut(dtype), **more,
        }  # fmt: skip

    def cut(self, dtype: str) -> About:
        """What a finding says of a target that is not whole: `layers`, how many of its first ones are run."""
        return {"layers": self.layers[dtype]} if dtype in self.layers else {}

    def about_ledger(self, kind: str, method: str, dtype: str, **more: Any) -> About:
        """Of an output in a ledger, which other code may have made."""
        return {"kind": kind, "method": method, **more, "dtype": dtype, "model": self.model, "target": self.targets[dtype].id,
                "audit": audit_sha(), **self.where}  # fmt: skip


class Findings(Protocol):
    """Where findings lie: a `Store`, or what stands in for one in a worker of a cluster."""

    @property
    def path(self) -> Path: ...

    def key_of(self, about: Mapping[str, Any]) -> str: ...
    def get(self, about: Mapping[str, Any]) -> Finding | None: ...
    def add(self, about: Mapping[str, Any], values: Mapping[str, Any]) -> Finding: ...
    def __iter__(self) -> Iterator[Finding]: ...


@dataclass
class Keeper:
    """The findings of a store that count for one audit. `touched`: those it is about, old and new; only they are judged."""

    store: Findings
    touched: list[Finding] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The store's file."""
        return self.store.path

    def key(self, job: Job) -> str:
        """The key under which the job's finding lies in the store, or would."""
        return self.store.key_of(job.about)

    def found(self, job: Job) -> Finding | None:
        """The stored finding. None if there is none, or only an error: that may have been the machine's."""
        stored = self.store.get(job.about)
        return None if stored is None or "error" in stored else stored

    def touch(self, found: Finding) -> Finding:
        self.touched.append(found)
        return found

    def keep(self, job: Job, made: Finding, seconds: float) -> Finding:
        """Write a finding; on the disk when this returns."""
        return self.touch(self.store.add(job.about, {**made, "seconds": round(seconds, 4)}))

    def apart(self, planned: Collection[str], origin: Origin, subjects: Sequence[Subject]) -> dict[str, int]:
        """Why findings of the store do not count here -> how many. Those of other levels and methods are left out.

        planned: keys of the findings that this audit is about.
        """
        why_not: dict[str, int] = {}
        code = {s.name: s.code for s in subjects}
        for f in self.store:
            there = {name: f[name] for name in origin.where if name in f}
            if f["key"] in planned:
                continue
            if there and there != origin.where:
                why = "on {machine}, {threads} threads, torch {torch}".format(**f)
            elif (
                f.get("audit") != audit_sha()
                or f.get("abreast", lanes_sha()) != lanes_sha()
                or f.get("code", "") != code.get(f["method"], f.get("code", ""))
            ):
                why = "by other code"
            else:
                continue
            why_not[why] = why_not.get(why, 0) + 1
        return why_not
