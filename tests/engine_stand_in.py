"""Stand-ins for engines behind HTTP, on loopback: they answer with the tiny model's own tokens, in each engine's words.

`drafts` is what a step drafts; 0: speculation is off. A step accepts 0, 1, .. `drafts` tokens in turn, so that counts are known.
`fault` spoils answers in one way, from request `since` on (from 0).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tiny_model import STOP_IDS, shared_tiny_model

from methods.base import SamplerParams

MODEL = "tiny-served"
AGAIN_S = 0.25  # an answer that is not streamed takes: no clock may have it
PACE_S = 0.001  # between two steps: what streams at once has no times to tell
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llamacpp", "openai": "somebody"}


@dataclass
class Serving:
    """What a stand-in does, and `requests`: the bodies of the completions it was asked for."""

    kind: str = "llama.cpp"
    drafts: int = 0
    fault: str = ""
    since: int = 0
    version: str = "b1-test"
    flip_at: int | None = None  # position at which another token is put: an output that is not the plain engine's
    sharpened: float = 1.0  # what its temperature is divided by: another law than was asked for
    reseeded: int = 0  # added to the seed: the same law, other draws
    held_back: Collection[int] = ()  # positions of tokens that llama.cpp does not stream: they leave a character incomplete
    per_request: bool = False  # vLLM's own metrics of a request
    requests: list[dict[str, Any]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    url: str = ""


@dataclass(frozen=True)
class Made:
    """An answer as it is streamed: tokens by step, the prefill's first."""

    steps: list[list[int]]
    accepted: list[int]  # by step after the prefill, before cutting
    stopped: bool

    @property
    def ids(self) -> list[int]:
        return [token for step in self.steps for token in step]


def made(serving: Serving, prompt: list[int], budget: int, temperature: float, seed: int) -> Made:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(budget, STOP_IDS, temperature=temperature / serving.sharpened, key=seed + serving.reseeded)
    ids = list(tiny.vanilla(prompt, params).token_ids)
    if serving.flip_at is not None and serving.flip_at < len(ids) - 1:
        ids[serving.flip_at] = next(i for i in range(300, 400) if i != ids[serving.flip_at])
    steps, accepted = [ids[:1]], list[int]()
    while len(left := ids[sum(map(len, steps)) :]):
        n = len(accepted) % (serving.drafts + 1)
        n = min(n, budget - (len(ids) - len(left)) - 1)  # no engine drafts beyond the budget
        steps.append(left[: n + 1])
        accepted.append(n)
    return Made(steps, accepted, ids[-1] in STOP_IDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: object) -> None:
        """Nothing is told."""

    @property
    def serving(self) -> Serving:
        found: Serving = self.server.serving  # type: ignore[attr-defined]
        return found

    def do_GET(self) -> None:
        s = self.serving
        card: dict[str, Any] = {"id": MODEL, "object": "model", "owned_by": OWNERS[s.kind]}
        told: dict[str, Any] = {"/v1/models": {"object": "list", "data": [card]}}
        if s.kind == "vllm":
            card |= {"root": "/models/tiny", "max_model_len": 2560}
            told |= {"/version": {"version": s.version}, "/metrics": self._metrics()}
        elif s.kind == "sglang":
            algorithm = {"speculative_algorithm": "EAGLE", "speculative_num_steps": s.drafts} if s.drafts else {}
            told["/server_info"] = {"version": s.version, "dtype": "float32", "speculative_algorithm": None, **algorithm}
        elif s.kind == "llama.cpp":
            card["meta"] = {"n_vocab": 512, "n_params": 135488}
            told["/props"] = {"build_info": s.version, "default_generation_settings": {"params": {"speculative.types": "none"}}}
        found = told.get(self.path)
        body = found if isinstance(found, str) else json.dumps(found)
        self._send(200 if found is not None else 404, body)

    def _metrics(self) -> str:
        s = self.serving
        names = {"tokens": "generation_tokens_total", "waits": "inter_token_latency_seconds_count"}
        if s.drafts:
            names |= {"drafts": "spec_decode_num_drafts_total", "drafted": "spec_decode_num_draft_tokens_total",
                      "accepted": "spec_decode_num_accepted_tokens_total"}  # fmt: skip
        return "".join(f'# TYPE vllm:{metric} counter\nvllm:{metric}{{engine="0",model_name="{MODEL}"}} {s.counted[key]}.0\n'
                       for key, metric in names.items())  # fmt: skip

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        s = self.serving
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("n_predict") == 1:  # llama.cpp asked what it is
            body |= {"prompt": [1, 2, 3], "temperature": 0.0}
        else:
            s.requests.append(body)
        fault = s.fault if len(s.requests) > s.since else ""
        if fault == "refuses":
            self._send(400, json.dumps({"error": {"message": "the prompt is too long for me", "code": 400}}))
            return
        if fault == "fails":
            self._send(500, json.dumps({"error": {"message": "the prompt is too much for me", "code": 500}}))
            return
        if fault == "slow":
            time.sleep(1.5)
        if fault == "hangs up":
            self.connection.close()
            return
        if not body.get("stream", True):  # llama.cpp's way: every token, at once
            time.sleep(AGAIN_S)
            *_, last = self._llama_cpp(body, "")
            self._send(200, json.dumps({**last, "tokens": self._answer(body["prompt"], body, body["n_predict"], "").ids}))
            return
        events = {"vllm": self._vllm, "sglang": self._sglang, "llama.cpp": self._llama_cpp, "openai": self._openai}[s.kind]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in events(body, fault):
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                self.wfile.flush()
            if s.kind != "llama.cpp":
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:  # who asked has gone
            pass

    def _answer(self, prompt: list[int], body: dict[str, Any], budget: int, fault: str) -> Made:
        s = self.serving
        found = made(s, prompt, budget, body.get("temperature", 0.0), body.get("seed", 0))
        if fault == "truncates":
            found = Made(found.steps[:2], found.accepted[:1], False)
        if fault == "goes on":
            found = Made([*found.steps, [5, 6]], [*found.accepted, 1], False)
        n = len(found.ids)
        s.counted["tokens"] += n
        s.counted["waits"] += len(found.accepted)
        s.counted["drafts"] += len(found.accepted)
        s.counted["drafted"] += s.drafts * len(found.accepted)
        s.counted["accepted"] += sum(found.accepted)
        if fault == "others ask too":
            s.counted["tokens"] += 7
        return found

    def _names(self, fault: str) -> str:
        return "another-model" if fault == "another model" else MODEL

    def _n(self, n: int, fault: str) -> int:
        return n + 3 if fault == "counts" else n

    def _text(self, ids: list[int], fault: str) -> str:
        tokenizer = shared_tiny_model("float32").loaded.tokenizer
        text = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.upper() + "?" if fault == "another tokenizer" else text

    def _steps(self, found: Made, fault: str) -> Iterator[tuple[list[int], str]]:
        """(the new tokens, the new text) of each step."""
        so_far, shown = list[int](), ""
        for step in found.steps:
            time.sleep(PACE_S)
            so_far += step
            text = self._text(so_far, fault)
            new = text[len(shown) :] if not text.endswith("\ufffd") else ""
            shown += new
            yield step, new

    def _vllm(self, body: dict[str, Any], fault: str) -> Iterator[dict[str, Any]]:
        s, prompt = self.serving, body["prompt"]
        found = self._answer(prompt, body, body["max_tokens"], fault)
        base = {"id": "cmpl-1", "object": "text_completion", "model": self._names(fault)}
        last = len(found.steps) - 1
        for i, (step, text) in enumerate(self._steps(found, fault)):
            choice = {"index": 0, "text": text, "token_ids": step, "finish_reason": None, "stop_reason": None}
            if i == last:
                choice |= (
                    {"finish_reason": "stop", "stop_reason": found.ids[-1]} if found.stopped else {"finish_reason": "length"}
                )
            yield {**base, "choices": [choice]}
        n = self._n(len(found.ids), fault)
        usage = {"prompt_tokens": len(prompt) - (fault == "another prompt"), "completion_tokens": n}
        told = {"num_spec_steps": len(found.accepted), "num_accepted_draft_tokens": sum(found.accepted),
                "num_draft_tokens": s.drafts * len(found.accepted)}  # fmt: skip
        yield {**base, "choices": [], "usage": usage, **({"metrics": {"speculative_decoding": told}} if s.per_request else {})}

    def _sglang(self, body: dict[str, Any], fault: str) -> Iterator[dict[str, Any]]:
        s, prompt, asked = self.serving, body["input_ids"], body["sampling_params"]
        found = self._answer(prompt, asked, asked["max_new_tokens"], fault)
        so_far, text, last = list[int](), "", len(found.steps) - 1
        for i, (step, new) in enumerate(self._steps(found, fault)):
            so_far, text = so_far + step, text + new
            meta: dict[str, Any] = {"prompt_tokens": len(prompt) - (fault == "another prompt"),
                                    "cached_tokens": 4 * (fault == "caches"), "completion_tokens": len(so_far),
                                    "finish_reason": None}  # fmt: skip
            if i == last:
                meta["completion_tokens"] = self._n(len(so_far), fault)
                meta["finish_reason"] = {"type": "stop", "matched": so_far[-1]} if found.stopped else {"type": "length"}
                if s.drafts:
                    meta |= {"spec_verify_ct": len(found.accepted), "spec_num_correct_drafts": sum(found.accepted),
                             "spec_num_proposed_drafts": s.drafts * len(found.accepted)}  # fmt: skip
            yield {"text": text, "output_ids": list(so_far), "meta_info": meta}

    def _llama_cpp(self, body: dict[str, Any], fault: str) -> Iterator[dict[str, Any]]:
        s, prompt = self.serving, body["prompt"]
        found = self._answer(prompt, body, body["n_predict"], fault)
        accepted, at, held = 0, -1, ""  # of text, what comes with a later token
        for i, (step, text) in enumerate(self._steps(found, fault)):
            accepted += found.accepted[i - 1] if i else 0
            timings = {"draft_n": s.drafts * i, "draft_n_accepted": accepted} if s.drafts and i else {}
            for k, token in enumerate(step):
                at, held = at + 1, held + (text if k == len(step) - 1 else "")
                if at in s.held_back:  # nothing is sent of it, then or later
                    continue
                yield {"content": held, "tokens": [token], "stop": False, "timings": timings}

                held = ""
        if fault == "breaks off":
            return
        types = {"speculative.types": "none,ngram-simple" if s.drafts else "none"}
        yield {"content": held, "tokens": [], "stop": True, "model": self._names(fault), "generation_settings": types,
               "tokens_predicted": self._n(len(found.ids), fault), "tokens_evaluated": len(prompt) - (fault == "another prompt"),
               "truncated": fault == "own context", "stop_type": "eos" if found.stopped else "limit",
               "timings": {"cache_n": 0, **timings}}  # fmt: skip

    def _openai(self, body: dict[str, Any], fault: str) -> Iterator[dict[str, Any]]:
        prompt: list[int] = shared_tiny_model("float32").loaded.tokenizer(body["prompt"], add_special_tokens=False).input_ids
        found = self._answer(prompt, body, body["max_tokens"], fault)
        base = {"id": "cmpl-1", "model": self._names(fault)}
        for _, text in self._steps(found, fault):
            yield {**base, "choices": [{"index": 0, "text": text, "finish_reason": None}]}
        yield {**base, "choices": [{"index": 0, "text": "", "finish_reason": "stop" if found.stopped else "length"}]}
        usage = {"prompt_tokens": len(prompt) - (fault == "another prompt"), "completion_tokens": self._n(len(found.ids), fault)}
        yield {**base, "choices": [], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def engine(kind: str = "llama.cpp", **how: Any) -> Iterator[Serving]:
    """A stand-in that answers at its `url` until the block ends."""
    shared_tiny_model("float32")  # before a test has its way with what loads models
    serving = Serving(kind, **how)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.serving = serving  # type: ignore[attr-defined]
    serving.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
