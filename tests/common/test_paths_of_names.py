"""Every path that has a name in it is made by `plain_names.place`: the syntax tree of the whole code is searched for others."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from places import ROOT

NAMES = {
    "category", "commit", "hub", "kind", "member", "method", "model", "name", "part", "preset", "pypi", "revision",
    "sample_id", "shard", "task", "tier",
}  # fmt: skip
JOINING = {"joinpath", "with_name", "with_stem", "Path", "PurePath", "join"}

OURS = {
    "harness/audit/faults/bench.py": {"request.out / name"},  # mutants.md, mutants.csv
    "harness/audit/figures.py": {"out / name"},  # l1-law ... l5-acceptance
    "harness/audit/served.py": {"out / AUDIT.name"},
    "harness/audit/spread.py": {"Path(request.model)"},  # --model: the path of a file
    "harness/audit/page.py": {"out / AUDIT.name"},  # lossless.json
    "harness/audit/keeper.py": {"probe / f'{name}.py'"},  # our own modules
    "harness/commands/verify.py": {"request.out / f'served-{n}'"},  # a number
    "harness/common/files.py": {"kept.with_name(f'{kept.name}.sha256')", "Path(name)"},  # beside a place; a temporary file
    "harness/common/cores.py": {"root / name"},  # the kernel's files
    "harness/common/plain_names.py": {
        "folder.joinpath(*(plain_name(kind, name) for name in names))",
        "path.with_name(path.name + suffix)",
    },
    "harness/common/shadow.py": {"OURS / name"},  # harness, methods, tasks, models
    "harness/common/source_hash.py": {
        "package.folder.joinpath(*name.removeprefix(f'{package.name}.').split('.'))",
        "file.parent.joinpath(*name.split('.'))",
        "base / alias.name",
    },  # modules that Python has imported
    "harness/common/write_lock.py": {"Path(f'/proc/{pid}/stat')"},  # a number
    "harness/exchange/imported.py": {"Path(name)"},  # --tokenizer: a path, if it is one
    "harness/forms/figure.py": {"stem.with_name(f'{stem.name}.png')"},
    "harness/ledger/ledger.py": {"Path(folder) / name", "Path(folder) / f'.{RECORDS}.lock'"},  # records.jsonl, and packed
    "harness/load/config.py": {"Path(name)"},  # --model: a path, if it is one
    "harness/load/inventory.py": {"folder / name"},  # files that the folder's own mark or list names
    "harness/load/layout.py": {  # model.safetensors ...
        "folder / f'{name}.index.json'",
        "folder / f'{SAFE}.index.json'",
        "folder / f'{PICKLED}.index.json'",
        "folder / name",
    },
    "harness/load/weights.py": {  # files that the folder's own mark lists
        "Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))",
        "folder / name",
    },
    "harness/replay/record.py": {"folder / f'.{FILE}.lock'"},  # replays.jsonl
    "harness/train/data.py": {"folder / f'shard-{number:05d}.npz'"},
    "harness/train/loop.py": {"folder / name"},  # checkpoints
    "harness/train/report.py": {"folder / name"},  # training, calibration
    "harness/train/save.py": {"out / name"},  # curve.jsonl, calibration.jsonl
    "methods/engine/stop_net.py": {"resources.files('models') / 'policies' / f'{given}{SUFFIX}'"},  # a plain name
    "methods/engine/native/build.py": {  # the compiled library, and a folder of this user's own
        "Path(scratch) / f'engine{SUFFIX}'",
        "Path(tempfile.gettempdir()) / f'draft-tree-harness-native-{os.getuid()}'",
    },
    "tasks/paper_files.py": {"kept.with_name(f'{kept.name}.old')"},
}
"""Where the name is one of ours, or the user's own path. Nothing that a YAML, a record or an answer file says gets there."""


def has_name(node: ast.expr) -> bool:
    """Whether an expression holds a name, or text put together from something."""
    return any(
        isinstance(n, ast.JoinedStr)
        or (isinstance(n, ast.Name) and n.id in NAMES)
        or (isinstance(n, ast.Attribute) and n.attr in NAMES)
        or (isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant) and n.slice.value in NAMES)
        for n in ast.walk(node)
    )


def paths_with_names(code: str) -> Iterator[str]:
    """Expressions that make a path of a folder and a name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not isinstance(node.right, ast.BinOp | ast.Call):
            is_plain = isinstance(node.right, ast.JoinedStr | ast.Name | ast.Attribute | ast.Subscript)
            if is_plain and has_name(node.right) and "[name]" not in ast.unparse(node):  # numbers by name, not paths
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Constant)  # ", ".join(..)
            if called in JOINING and not text and any(map(has_name, node.args)):
                yield ast.unparse(node)


def test_paths_with_names_are_made_in_one_place() -> None:
    found = {}
    for room in ("harness", "methods", "tasks"):
        for file in sorted((ROOT / room).rglob("*.py")):
            if made := set(paths_with_names(file.read_text(encoding="utf-8"))):
                found[str(file.relative_to(ROOT))] = made
    assert found == OURS


def test_the_search_sees_paths_of_names_in_whatever_way_they_are_made() -> None:
    for made in (
        "cache / config.name", "out / task / 'x'", "folder / f'{x}.json'", "Path(f'{a}/{b}')", "out.joinpath(record['task'])",
        "os.path.join(a, method)", "folder / r['model']", "path.with_name(model + '.json')",
    ):  # fmt: skip
        assert list(paths_with_names(made)), made
    for fine in ("place(out, 'task', task)", "a / b", "tokens / seconds", "', '.join(name)", "folder / 'config.json'"):
        assert not list(paths_with_names(fine)), fine
