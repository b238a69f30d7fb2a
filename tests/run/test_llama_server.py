"""A real engine: llama.cpp's server on the embedded target, plain, with n-grams and with a draft model, started on loopback.

Skipped where `python scripts/llama_server.py` has not built it, or the target is not in the cache.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import harness
from places import ROOT

from harness.ledger.ledger import read
from harness.ledger.record import Record

_spec = importlib.util.spec_from_file_location("llama_server", ROOT / "scripts" / "llama_server.py")
assert _spec is not None and _spec.loader is not None
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

SERVER: Path | None = script.found()  # looked for before any test has a cache of its own
pytestmark = [
    pytest.mark.slow,
    pytest.mark.embedded,
    pytest.mark.skipif(SERVER is None, reason="no llama.cpp server: python scripts/llama_server.py builds it"),
]
RUN = "run --model smollm2-135m --source bundled --limit 2 --max-new-tokens 48 --method server --task gsm8k --task mt_bench"
NGRAMS = "--spec-type ngram-simple --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 8"


@contextmanager
def serving(weights: Path, words: str = "") -> Iterator[str]:
    """The address of a server of its own, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [SERVER, "-m", weights, "--alias", "smollm2-135m", "--host", "127.0.0.1", "--port", port, "-t", 1, "-c", 4096,
               "--parallel", 1, "--no-webui", *words.split()]  # fmt: skip
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            assert process.poll() is None, f"the server ended with status {process.returncode}"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def weights() -> Path:
    return Path(script.gguf())


@pytest.fixture(scope="module")
def plain(weights: Path) -> Iterator[str]:
    with serving(weights) as url:
        yield url


@pytest.mark.parametrize("words", [NGRAMS, "draft"], ids=["n-grams", "draft model"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_its_steps_add_up_and_its_outputs_are_the_plain_servers(
    words: str, temperature: int, weights: Path, plain: str, tmp_path: Path
) -> None:
    # the target as its own draft model: nearly every draft is accepted
    given = f"--spec-type draft-simple --spec-draft-model {weights} --spec-draft-n-max 4" if words == "draft" else words
    named = ("--set", f"drafts={'itself' if words == 'draft' else 'n3-m8'}")
    with serving(weights, given) as url:
        outcome = harness(RUN, *named, "--temperature", temperature, "--out", tmp_path, "--json", "--set", f"url={url}", "--set",
                          f"baseline_url={plain}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    own, base = (_measured(tmp_path, name, temperature) for name in ("server", "server-plain"))
    assert len(own) == len(base) == 6
    for record in own:
        served, n = record["served"], len(record["token_ids"])
        assert served["prompt_as"] == "ids" and served["ids_from"] == "engine" and served["n_cached"] == 0
        assert served["steps"] is not None and 0 < served["steps"] <= n - 1
        kept = n - 1 - served["steps"]  # what a step's last token was cut by is counted among the accepted
        assert kept <= served["accepted"] <= served["drafted"] and (record["finish"] == "stop" or kept == served["accepted"])
    tau = outcome.value[-1]["tau"]
    assert tau > (1.0 if words != "draft" else 1.3 if temperature else 2.5) and outcome.value[-1]["speedup"] > 0
    same = [a["token_ids"] == b["token_ids"] for a, b in zip(own, base, strict=True)]
    assert sum(same) >= 4  # rows in a batch are rounded otherwise than one alone
    (env,) = (json.loads(file.read_text()) for file in tmp_path.glob("env-*.json"))
    assert env["engines"]["server-plain"]["drafting"] == {} and env["engines"]["server"]["drafting"]["types"]
    assert env["target_parts"]["engine"].startswith("llama.cpp b") and str(weights.parent) not in json.dumps(env)


def _measured(out: Path, method: str, temperature: float) -> list[Record]:
    kept = [r for r in read(out) if not r["is_warmup"] and (r["method"], r["temperature"]) == (method, temperature)]
    return sorted(kept, key=lambda r: (r["task"], r["sample_id"], r["turn"]))
