"""Hashes of code follow imports, ignore layout, and tell which ledgers and findings are of other code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from places import ROOT

import methods
from harness.common.source_hash import Package, closure, closure_sha

METHODS = Package("methods", ROOT / "methods")


def sha(folder: Path, **files: str) -> str:
    """Of a package `pack` with these modules, `a` being the root."""
    package = folder / str(len(list(folder.iterdir()))) / "pack"  # files are read once a process
    package.mkdir(parents=True)
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return closure_sha((package / "a.py",), Package("pack", package))


def test_the_hash_is_of_what_code_does(tmp_path: Path) -> None:
    plain = 'def f(x):\n    return "# not a comment" + x\n'
    told = '"""What it is."""\n\n# why\ndef f(x):\n    """Doc.\n\n    More.\n    """\n\n    return "# not a comment" + x\n'
    assert sha(tmp_path, a=plain) == sha(tmp_path, a=told)
    assert sha(tmp_path, a=plain) != sha(tmp_path, a=plain.replace("not a", "another"))
    assert sha(tmp_path, a=plain) != sha(tmp_path, a=plain.replace("+ x", "+ x + x"))


def test_the_hash_follows_imports_and_nothing_else(tmp_path: Path) -> None:
    a = "def f(x):\n    from pack import b\n    return b.g(x)\n"
    base = sha(tmp_path, a=a, b="from pack.c import h as g\n", c="def h(x): return x\n", d="def unused(): pass\n")
    assert base == sha(tmp_path, a=a, b="from pack.c import h as g\n", c="def h(x): return x\n", d="x = 1\n")
    assert base != sha(tmp_path, a=a, b="from pack.c import h as g\n", c="def h(x): return -x\n", d="def unused(): pass\n")
    assert base != sha(tmp_path, a=a, b="from pack.c import i as g\n", c="def h(x): return x\n", d="def unused(): pass\n")


def test_what_the_registry_is_told_is_not_what_a_method_does(tmp_path: Path) -> None:
    one = '@method("m", line="as it is")\ndef m(k: int = 3):\n    return k\n'
    assert sha(tmp_path, a=one) == sha(tmp_path, a=one.replace("as it is", "told better"))
    assert sha(tmp_path, a=one) != sha(tmp_path, a=one.replace("= 3", "= 4"))


def test_a_users_method_is_hashed_with_the_files_beside_it_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\nfrom methods.engine.loop import speculative\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    found = {file.name for file in closure([tmp_path / "mine.py"], METHODS)}
    assert {"mine.py", "helper.py", "loop.py"} <= found and "other.py" not in found and "grow.py" not in found


def test_relative_imports_and_statements_beside_imports_count(tmp_path: Path) -> None:
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").write_text("from .core import N\nfrom . import more\n")
    (package / "core.py").write_text("N = 1\n")
    (package / "more.py").write_text("M = 1\n")
    assert {file.name for file in closure([package / "__init__.py"], METHODS)} == {"__init__.py", "core.py", "more.py"}
    one = "from pack.b import g; K = 5\n"
    assert sha(tmp_path, a=one, b="g = 1\n") != sha(tmp_path, a=one.replace("5", "6"), b="g = 1\n")
    text = '"a"; x = 5; "b"\n'
    assert sha(tmp_path, a=text) != sha(tmp_path, a=text.replace("5", "6"))


def test_a_copy_of_the_code_is_the_same_code_and_an_edited_engine_is_other_code_for_every_method(tmp_path: Path) -> None:
    def copied(name: str, edit: str) -> dict[str, str]:
        package = Package("methods", tmp_path / name / "methods")
        shutil.copytree(ROOT / "methods", package.folder, ignore=shutil.ignore_patterns("__pycache__"))
        with (package.folder / "engine" / "target.py").open("a") as target:
            target.write(edit)
        of = {
            m: [package.folder / file.relative_to(ROOT / "methods") for file in methods.get(m).sources] for m in methods.names()
        }
        return {m: closure_sha(tuple(files), package) for m, files in of.items()}

    now = {method: methods.code_sha(method) for method in methods.names()}
    assert copied("same", "\n# a comment\n") == now
    edited = copied("edited", "\nEDITED = True\n")
    assert all(now[m] != edited[m] for m in now)


def test_an_edited_line_of_c_or_flag_of_its_compiler_is_other_code_and_a_comment_is_not(tmp_path: Path) -> None:
    def shas(name: str, file: str, old: str, new: str) -> list[str]:
        """Of all of the engine, of a method and of the native engine, with `old` replaced."""
        package = Package("methods", tmp_path / name / "methods")
        shutil.copytree(ROOT / "methods", package.folder, ignore=shutil.ignore_patterns("__pycache__"))
        edited = package.folder / "engine" / "native" / file
        text = edited.read_text()
        assert old in text
        edited.write_text(text.replace(old, new, 1))

        def there(files: tuple[Path, ...]) -> str:
            return closure_sha(tuple(package.folder / file.relative_to(ROOT / "methods") for file in files), package)

        every = tuple(sorted((ROOT / "methods" / "engine").rglob("*.py")))
        return [there(every), there(methods.get("vanilla").sources), there(methods._NATIVE)]

    include = '#include "engine.h"'
    now = [methods.engine_sha(), methods.code_sha("vanilla"), methods.native_sha()]
    assert shas("same", "kernels.c", include, f"// a comment \"\n\n  {include} /* it's another\n of two lines */") == now
    for name, (file, old, new) in {
        "c": ("kernels.c", include, f"{include}\nint edited;"),
        "h": ("engine.h", "PANEL = 64", "PANEL = 32"),
        "flags": ("build.py", '"-O3"', '"-O2"'),
    }.items():
        assert all(a != b for a, b in zip(shas(name, file, old, new), now, strict=True)), name


def test_every_method_depends_on_the_forwards_of_each_engine_and_those_that_draft_there_on_its_drafters() -> None:
    for name in methods.names():
        found = {file.relative_to(ROOT / "methods" / "engine").as_posix() for file in closure(methods.get(name).sources, METHODS)
                 if ROOT / "methods" / "engine" in file.parents}  # fmt: skip
        assert {"native/target.py", "native/build.py", "native/forward.c", "native/kernels.c", "native/engine.h"} <= found
        assert {"row_invariant/target.py", "static/target.py", "static/replay.py", "attention.py", "llama.py"} <= found
        drafts = methods.ENGINES.get(methods.get(name).drafter or "") in methods.NATIVE_DRAFTERS
        assert ("native/drafters.py" in found) == drafts == ("row_invariant/drafters.py" in found)
        assert ("static/drafter.py" in found) == drafts


def test_findings_that_another_native_engine_made_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.audit import keeper

    now = keeper.audit_sha()
    keeper.audit_sha.cache_clear()
    monkeypatch.setattr(methods, "native_sha", lambda: "another")
    assert keeper.audit_sha() != now
    keeper.audit_sha.cache_clear()


def test_text_in_c_that_looks_like_a_comment_counts(tmp_path: Path) -> None:
    def sha_with(text: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "pack"
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
        (folder / "a.c").write_text(text)
        return closure_sha((folder / "a.py",), Package("pack", folder))

    plain = 'char *a = "/* no \\" comment */"; char b = \'"\'; // one\n'
    assert sha_with(plain) == sha_with(plain.replace("// one", "/* another */"))
    assert sha_with(plain) != sha_with(plain.replace("no", "not"))
    assert sha_with(plain) != sha_with(plain.replace("b =", "c ="))
