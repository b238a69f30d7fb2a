"""`harness export-head`: a head in the layout of another project, and how it is served there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

import methods
from harness.common.errors import UserError
from harness.common.files import save_whole, write_file
from harness.exchange.heads.formats import Format, format_of
from harness.exchange.heads.head import Head, read_head
from harness.exchange.heads.target import Target, target_of
from harness.load.config import model_config
from harness.load.layout import SAFE

FILES = frozenset({SAFE, "config.json"})


def export_head(folder: Path, format_: str, out: Path, model: str, address: str | None = None) -> list[str]:
    """Write the head in `folder`, which may be of any layout read here, to `out` -> lines that say how to serve it.

    model: the target's name or YAML. address: what the target is called there, in place of the model's repository or folder.

    Raises:
        UserError: no such format or model; a folder that is no head, or one of another target; a format that does not fit, and
            why; or an `out` that holds something else.
    """
    written_as = format_of(format_)
    if held := sorted(path.name for path in out.iterdir() if path.name not in FILES) if out.is_dir() else []:
        raise UserError(f"{out} holds {held[0]}, which may be loaded in place of what is written; choose another --out")
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the head's own folder; choose another")
    target = target_of(model_config(model), address)
    head = read_head(folder, target)
    tree = {name: int(value) for name, value in methods.get("eagle2").options.items() if name in ("top_k", "depth", "total")}
    config, tensors = written_as.written(head, target, tree["depth"])
    try:
        save_whole(out / SAFE, partial(save_file, tensors, metadata={"format": "pt"}))
    except OSError as e:
        raise UserError(f"cannot write to {out}: {e.strerror or e}") from e
    write_file(out / "config.json", json.dumps(config, indent=2) + "\n")
    lines = [*how_to_serve(written_as, head, target, out, **tree)]
    if head.target_sha is not None and target.sha is None:
        lines.append(f"the weights of {target.name} are not here, so that it was trained for them was not checked")
    if head.has_embedding:
        lines.append("the embedding in its file is left out; that it is the target's is checked where `harness run` loads it")
    return [f"written to {out}: {len(tensors)} tensors and a config.json for {written_as.loads_in}", *lines]


def how_to_serve(
    written_as: Format, head: Head, target: Target, out: Path, *, top_k: int, depth: int, total: int
) -> Iterator[str]:
    """The command or call that serves what was written. The tree: EAGLE-2's (`top_k` children, `depth` levels, `total` draft
    nodes), where the engine has one."""
    at, address = str(out.resolve()), shlex.quote(target.address)
    if written_as.name in ("vllm", "speculators"):
        spec = {"method": head.kind, "model": at, "num_speculative_tokens": depth}
        yield f"vllm serve {address} --speculative-config {shlex.quote(json.dumps(spec))}"
        yield f"vLLM drafts a chain: {depth} tokens, as many as EAGLE-2's tree has levels"
    elif written_as.name == "sglang":
        algorithm = "EAGLE" if head.eagle3 is None else "EAGLE3"
        yield (
            f"python -m sglang.launch_server --model-path {address} --speculative-algorithm {algorithm} "
            f"--speculative-draft-model-path {shlex.quote(at)} --speculative-num-steps {depth} "
            f"--speculative-eagle-topk {top_k} --speculative-num-draft-tokens {total + 1}"
        )
        yield f"SGLang's steps are levels, and its draft tokens count the root: EAGLE-2's {total} nodes are {total + 1} there"
    elif written_as.name == "specforge":
        yield "SpecForge loads it to train on; exported from there, or with --format sglang or vllm, it is served"
    else:
        other = "use_eagle3=True" if head.eagle3 is not None else "use_eagle3=False"
        yield (
            f"EaModel.from_pretrained(base_model_path={target.address!r}, ea_model_path={at!r}, {other}, "
            f"total_token={total + 1}, depth={depth - 1}, top_k={top_k})"
        )
        if head.config.rope_theta != 10000:
            yield f"its rope_theta is {head.config.rope_theta:g}: of the authors' code `main` reads that, the branch v1 does not"
