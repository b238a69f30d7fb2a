"""How engines' answers are read, from exchanges made after their documentation; and the arithmetic of their counters."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from places import TESTS, TINY

from harness.common.errors import UserError
from harness.load.config import model_config
from harness.load.prompt_text import load_tokenizer
from harness.load.served import _turn_end
from harness.load.weights import tokenizer_folder
from methods.base import SamplerParams
from methods.servers import llama_cpp, openai, sglang, vllm
from methods.servers.answer import Answer, Asked, BadAnswer, Counts, EngineGone, Identity, checked, from_text, steps_by_drafts
from methods.servers.engines import connected, forget
from methods.servers.wire import Address, check_url, stream, total

DATA = TESTS / "data" / "servers"
IDS = [10, 11, 12, 13, 14, 2]  # of every exchange
WHO = Identity("vllm", "0.33.0", "m")


class Words:
    """A tokenizer of words: ` t10` is token 10; 0, 1 and 2 are special."""

    def text_of(self, ids: Sequence[int]) -> str:
        return "".join(f" t{i}" if i > 2 else f"<{i}>" for i in ids)

    def shown(self, ids: Sequence[int]) -> str:
        return "".join(f" t{i}" for i in ids if i > 2)

    def ids_of(self, text: str) -> list[int]:
        return [int(a or b) for a, b in re.findall(r" t(\d+)|<(\d)>", text)]

    def adds_first(self) -> list[int]:
        return [1]

    def turn_end(self) -> int | None:
        return None


def asked(*, n: int = 16, stop_ids: frozenset[int] = frozenset({2}), prompt: Sequence[int] = (1, 2, 3)) -> Asked:
    return Asked(list(prompt), SamplerParams(n, stop_ids, key=2**40 + 7), Words())


class _Replay(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        answers: dict[str, list[bytes]] = self.server.answers  # type: ignore[attr-defined]
        left = answers.get(self.path)
        self.send_response(200 if left else 404)
        self.end_headers()
        if left:
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@contextmanager
def replaying(answers: Mapping[str, str | list[str]]) -> Iterator[Address]:
    """An engine that answers a path with the file of that name, or with the text; of a list, one a request, the last again."""

    def read(name: str) -> bytes:
        return (DATA / name).read_bytes() if name.endswith((".sse", ".prom")) else name.encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Replay)
    server.answers = {path: [read(n) for n in ([a] if isinstance(a, str) else a)] for path, a in answers.items()}  # type: ignore
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Address(f"http://127.0.0.1:{server.server_port}", timeout=5)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        forget()


def whole(answer: Answer, finish: str = "stop") -> None:
    """What holds of the answer of every exchange."""
    assert answer.token_ids == IDS and answer.text == " t10 t11 t12 t13 t14"
    assert (answer.n_prompt, answer.n_tokens, answer.n_first) == (3, 6, 1) and answer.first_s > 0
    assert checked(answer, asked(), WHO) == finish


# ---- vLLM ----


def test_vllm_streams_token_ids_and_its_counters_differ_by_the_steps() -> None:
    with replaying({"/v1/completions": "vllm.sse", "/metrics": ["vllm_before.prom", "vllm_after.prom"]}) as address:
        vllm.ready(address)
        answer = vllm.ask(address, WHO, asked())
        whole(answer)
        assert (answer.model, answer.prompt_as, answer.ids_from, answer.n_cached) == ("m", "ids", "engine", 0)
        assert answer.why_ended == "stop 2"
        assert answer.counts() == Counts(2, 6, 4, "/metrics")


def test_vllm_tells_the_same_with_the_answer_where_it_is_started_to() -> None:
    counter = "metrics.speculative_decoding, /metrics"
    with replaying({"/v1/completions": "vllm_per_request.sse", "/metrics": ["vllm_before.prom", "vllm_after.prom"]}) as address:
        vllm.ready(address)
        answer = vllm.ask(address, WHO, asked())
        whole(answer)
        assert answer.counts() == Counts(2, 6, 4, counter)
    with replaying({"/v1/completions": "vllm_per_request.sse", "/metrics": ""}) as address:
        vllm.ready(address)  # and all steps are not in its own metrics
        why = "it counts steps with a draft, and does not tell of those without: its /metrics has no spec_decode counters"
        assert vllm.ask(address, WHO, asked()).counts() == Counts(None, 6, 4, counter, why)


def test_vllms_steps_without_a_draft_count_in_both_ways() -> None:
    """16 tokens in 8 steps, of which 5 drafted; 12 drafts were accepted, and of the last step's tokens 5 cut."""
    names = ("generation_tokens_total", "spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total",
             "spec_decode_num_accepted_tokens_total", "inter_token_latency_seconds_count")  # fmt: skip
    before, after = ("".join(f"vllm:{name} {n}\n" for name, n in zip(names, told, strict=True))
                     for told in ((0, 0, 0, 0, 0), (16, 5, 40, 12, 8)))  # fmt: skip
    spec = {"num_spec_steps": 5, "num_draft_tokens": 40, "num_accepted_draft_tokens": 12}
    for own in (spec, None):
        with replaying({"/metrics": [before, after]}) as address:
            vllm.ready(address)
            assert vllm._counts(address, 16, own).steps == 8


def test_an_earlier_vllm_streams_text_whose_ids_must_be_certain() -> None:
    with replaying({"/v1/completions": "vllm_text.sse", "/metrics": "vllm_before.prom"}) as address:
        answer = vllm.ask(address, WHO, asked())
        assert answer.token_ids == IDS and answer.ids_from == "text" and answer.n_first is None
        assert answer.counts().why == "nothing was read of its /metrics before"
        assert vllm.ask(address, WHO, asked(stop_ids=frozenset({0, 2}))).token_ids == IDS  # it says at which one


def test_vllms_counters_that_are_of_more_than_the_answer_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "PATIENCE_S", 0.05)
    with replaying({"/v1/completions": "vllm.sse", "/metrics": "vllm_before.prom"}) as address:
        vllm.ready(address)
        why = vllm.ask(address, WHO, asked()).counts().why
    assert why == "its /metrics counted 0 new tokens, and the answer has 6: other requests ran"
    with replaying({"/v1/completions": "vllm.sse", "/metrics": "vllm:generation_tokens_total 3\n"}) as address:
        vllm.ready(address)
        assert vllm.ask(address, WHO, asked()).counts().why == "its /metrics has no spec_decode counters"


def test_vllm_that_read_another_prompt_is_caught() -> None:
    with replaying({"/v1/completions": "vllm.sse"}) as address:
        with pytest.raises(BadAnswer, match="it read other token ids than it was given"):
            vllm.ask(address, WHO, asked(prompt=[1, 2, 4]))


def test_counters_of_prometheus_are_summed_over_labels_and_not_mistaken_for_others() -> None:
    text = (DATA / "vllm_before.prom").read_text()
    assert total(text, "vllm:generation_tokens_total") == 107
    assert total(text, "vllm:spec_decode_num_accepted_tokens_total") == 60  # not those per position
    assert total(text, "vllm:spec_decode_num_drafts") is None and total(None, "vllm:generation_tokens_total") is None
    assert total((DATA / "vllm_after.prom").read_text(), "vllm:spec_decode_num_draft_tokens_total") == 120


# ---- SGLang ----


@pytest.mark.parametrize(("file", "cached"), [("sglang.sse", 0), ("sglang_new.sse", 2)])
def test_sglang_streams_all_ids_or_the_new_ones(file: str, cached: int) -> None:
    with replaying({"/generate": file}) as address:
        answer = sglang.ask(address, WHO, asked())
        whole(answer)
        assert answer.counts().steps == 2 and answer.n_cached == cached


@pytest.mark.parametrize("names", list(zip(sglang.ACCEPTED, sglang.DRAFTED, strict=True)))
def test_sglangs_counters_are_found_under_the_names_of_every_version(names: tuple[str, str]) -> None:
    assert sglang._counts({"spec_verify_ct": 2, names[0]: 4, names[1]: 6}) == Counts(2, 6, 4, "meta_info")


def counted(n_tokens: int, counts: Callable[[], Counts]) -> Counts:
    """As an answer of so many tokens tells it."""
    return Answer([5] * n_tokens, 0.1, 1, "", None, "ids", "engine", 3, n_tokens, 0, "stop", 0.2, counts).counted()


def test_counters_that_lack_or_do_not_fit_give_no_steps() -> None:
    def told(n_tokens: int, **meta: int) -> str:
        found = counted(n_tokens, lambda: sglang._counts(meta))
        assert found.steps is None
        return found.why

    assert told(6) == "its meta_info has no spec_verify_ct"
    assert told(3, spec_verify_ct=5) == "its meta_info does not add up: 5 steps, 3 tokens"
    assert told(3, spec_verify_ct=0) == "its meta_info does not add up: 0 steps, 3 tokens"
    too_many = told(6, spec_verify_ct=2, spec_num_correct_drafts=7, spec_num_proposed_drafts=6)
    assert too_many == "its meta_info does not add up: 2 steps, 7 accepted of 6 drafted"
    assert counted(1, lambda: sglang._counts({"spec_verify_ct": 0})) == Counts(0, None, None, "meta_info")


def test_counters_that_cannot_be_read_give_no_steps() -> None:
    for meta in ({"spec_verify_ct": "many"}, {"spec_verify_ct": 2, "spec_num_correct_drafts": [4]}):
        assert counted(6, partial(sglang._counts, meta)).why.startswith("its counters cannot be read: ")
    nulls = dict.fromkeys(("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens"))
    with replaying({"/metrics": ["vllm_before.prom", "vllm_after.prom"]}) as address:
        vllm.ready(address)
        assert "lacks some of the counters" in counted(6, lambda: vllm._counts(address, 6, nulls)).why
    gone = Address("http://127.0.0.1:9", timeout=1)
    vllm.ready(gone)  # an answer's request will tell
    assert counted(6, lambda: vllm._counts(gone, 6, None)).why == "nothing was read of its /metrics before"


def test_sglangs_new_ids_that_begin_as_the_answer_did_are_new() -> None:
    events = [((10,), 1), ((10, 10), 3), ((11, 2), 5)]
    texts = [" t10", " t10 t10", " t11"]
    last = {"finish_reason": {"type": "stop", "matched": 2}}
    raw = [{"text": text, "output_ids": ids, "meta_info": {"prompt_tokens": 3, "completion_tokens": n} | (last if n == 5 else {})}
           for text, (ids, n) in zip(texts, events, strict=True)]  # fmt: skip
    with replaying({"/generate": "".join(f"data: {json.dumps(event)}\n\n" for event in raw)}) as address:
        answer = sglang.ask(address, WHO, asked())
    assert answer.token_ids == [10, 10, 10, 11, 2] and answer.text == " t10 t10 t10 t11"
    assert checked(answer, asked(), WHO) == "stop"


def test_sglangs_settings_of_speculation_are_told_where_it_is_on() -> None:
    info = '{"version": "0.5.23", "dtype": "bfloat16", "speculative_algorithm": %s, "speculative_num_steps": 3, "port": 1}'
    models = '{"data": [{"id": "m", "owned_by": "sglang"}]}'
    for algorithm, drafting in (('"EAGLE"', {"speculative_algorithm": "EAGLE", "speculative_num_steps": "3"}), ("null", {})):
        with replaying({"/v1/models": models, "/get_server_info": info % algorithm}) as address:
            who = connected(address).identity
        assert who == Identity("sglang", "0.5.23", "m", {"dtype": "bfloat16"}, drafting) and who.name == "sglang 0.5.23"


def test_of_a_path_that_an_engine_tells_records_keep_the_name() -> None:
    who = Identity("sglang", "1", "/home/me/m", {"model_path": "~/m"}, {"speculative_draft_model_path": "/home/me/heads/h"})
    assert who.told == Identity("sglang", "1", "m", {"model_path": "m"}, {"speculative_draft_model_path": "h"})


def test_sglang_that_gives_up_says_why() -> None:
    event = 'data: {"text":"","output_ids":[],"meta_info":{"finish_reason":{"type":"abort","message":"out of room"}}}\n\n'
    with replaying({"/generate": event}) as address, pytest.raises(BadAnswer, match="it gave up: out of room"):
        sglang.ask(address, WHO, asked())


# ---- llama.cpp ----


@pytest.mark.parametrize(("told", "by_step"), [
    ([], []), ([0], []), ([0, 0, 0], [0, 0]), ([0, 2, 2, 2], [2]), ([0, 2, 2, 2, 3, 3], [2, 1]),
    ([0, 2, 2, 2, 2, 3, 3], [2, 0, 1]), ([0, 0, 3, 3], [0, 3]), ([0, 1, 1, 2, 2], [1, 1]),
])  # fmt: skip
def test_llama_cpps_steps_are_told_from_the_sum_at_each_token(told: list[int], by_step: list[int]) -> None:
    assert llama_cpp.accepted_by_step(told) == by_step


def test_llama_cpps_steps_without_any_draft_count_where_it_speculates_and_are_not_made_up_elsewhere() -> None:
    assert llama_cpp._counts([0, 0, 0], {}, drafts=True) == Counts(2, 0, 0, "timings")
    assert llama_cpp._counts([0, 0, 0], {}, drafts=False) == Counts(why="its timings have no draft_n")
    late = llama_cpp._counts([0, 0, 0], {"draft_n": 4, "draft_n_accepted": 2}, drafts=True)
    assert late.steps is None and late.why == "its timings are not told token by token"


# ---- others ----


def test_a_prompt_as_text_leaves_out_what_the_tokenizer_puts_before_it_and_must_give_its_ids_back() -> None:
    assert asked(prompt=[1, 10, 2]).prompt_text() == " t10<2>"
    assert asked(prompt=[10, 11]).prompt_text() == " t10 t11"

    class Merging(Words):
        def ids_of(self, text: str) -> list[int]:
            return [99]

    with pytest.raises(BadAnswer, match="does not give its token ids back"):
        Asked([1, 10], SamplerParams(4), Merging()).prompt_text()


def test_an_engine_that_counts_nothing_is_not_believed() -> None:
    with pytest.raises(BadAnswer, match="does not count its tokens"):
        from_text(" t10", None, False, asked())
    assert from_text(" t10", 1, False, asked()) == [10] and from_text(" t10", 2, True, asked()) == [10, 2]


def test_at_which_of_several_stop_ids_a_text_ended_is_told_by_the_engine_or_by_the_prompt_format() -> None:
    class Ending(Words):
        def turn_end(self) -> int | None:
            return 0

    two = asked(stop_ids=frozenset({0, 2}))
    assert from_text(" t10", 2, True, two, 2) == [10, 2] and from_text(" t10", 2, True, replace(two, texts=Ending()), 2) == [
        10,
        2,
    ]
    assert from_text(" t10", 2, True, replace(two, texts=Ending())) == [10, 0]
    for told in (None, 7, "word"):
        with pytest.raises(BadAnswer, match="at which of the stop ids 0, 2 it ended"):
            from_text(" t10", 2, True, two, told)


def test_the_prompt_format_tells_what_ends_an_answer() -> None:
    config = model_config(str(TINY))
    assert config.stop_ids == [0, 2] and _turn_end(config, load_tokenizer(tokenizer_folder(config))) == 2


def test_any_other_engine_is_asked_by_text() -> None:
    events = ['{"model":"m","choices":[{"index":0,"text":" t10"}]}', '{"model":"m","choices":[{"index":0,"text":" t11 t12"}]}',
              '{"model":"m","choices":[{"index":0,"text":"","finish_reason":"stop"}]}',
              '{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}']  # fmt: skip
    with replaying({"/v1/completions": "".join(f"data: {event}\n\n" for event in events) + "data: [DONE]\n\n"}) as address:
        answer = openai.ask(address, WHO, asked())
    assert answer.token_ids == [10, 11, 12, 2] and checked(answer, asked(), WHO) == "stop" and answer.n_first == 1
    assert answer.counts().why == "it tells of no steps"


# ---- steps from drafts ----


@pytest.mark.parametrize(("numbers", "steps"), [
    ((6, 2, 6, 4, 2), 2), ((6, 2, 6, 3, 2), 2), ((6, 5, 15, 0, 5), 5), ((1, 0, 0, 0, 0), 0), ((6, 2, 6, 2, 3), 3),
    ((6, 0, 0, 0, 5), 5), ((16, 5, 40, 12, 8), 8),
])  # fmt: skip
def test_steps_of_counters_that_add_up(numbers: tuple[int, int, int, int, int], steps: int) -> None:
    n, drafts, drafted, accepted, told = numbers
    assert steps_by_drafts(n, drafts, drafted, accepted, "counters", told) == Counts(steps, drafted, accepted, "counters")


@pytest.mark.parametrize(("numbers", "why"), [
    ((6, 2, 6, 2, 2), "do not add up"), ((6, 2, 6, 9, 2), "do not add up"), ((6, 3, 9, 1, 2), "do not add up"),
    ((6, 4, 12, 3, 3), "do not add up: 3 steps"), ((16, 5, 40, 12, None), "does not tell of those without"),
])  # fmt: skip
def test_counters_that_do_not_add_up_give_no_steps(numbers: tuple[int, int, int, int, int | None], why: str) -> None:
    n, drafts, drafted, accepted, told = numbers
    found = steps_by_drafts(n, drafts, drafted, accepted, "counters", told)
    assert found.steps is None and why in found.why and (found.drafted, found.accepted) == (drafted, accepted)


# ---- the wire ----


def test_events_that_are_none_are_told() -> None:
    for text, said in (("data: {no json\n\n", "streamed what is no JSON"), ("data: [1]\n\n", "streamed what is no object"),
                       ('data: {"error": {"message": "it burns"}}\n\n', "answers with an error: it burns")):  # fmt: skip
        with replaying({"/x": text}) as address, pytest.raises(BadAnswer, match=said):
            list(stream(address, "/x", {}))
    with replaying({"/x": ': a comment\nevent: token\ndata: {"a": 1}\n\ndata: [DONE]\n\ndata: {"b": 2}\n\n'}) as address:
        assert [event for _, event in stream(address, "/x", {})] == [{"a": 1}]


def test_events_are_read_as_server_sent_events_may_be_written() -> None:
    for text, events in (('data:{"a":1}\n\ndata:[DONE]\n\ndata: {"b":1}\n\n', [{"a": 1}]),
                         ('data: {"a":1,\ndata: "b":2}\n\ndata: [DONE]\n\n', [{"a": 1, "b": 2}]),
                         ('data: {"a":1}\r\n\r\ndata: \n\n\ndata: {"b":1}', [{"a": 1}, {"b": 1}])):  # fmt: skip
        with replaying({"/x": text}) as address:
            assert [event for _, event in stream(address, "/x", {})] == events


@contextmanager
def cutting(hangs: bool) -> Iterator[Address]:
    """Answers everything with the beginning of what it says that it sends; it hangs up then, or not."""

    class Cutting(_Replay):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"data": [')
            self.wfile.flush()
            if hangs:
                time.sleep(0.6)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Cutting)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield Address(f"http://127.0.0.1:{server.server_port}", timeout=0.3)
    finally:
        server.shutdown()
        server.server_close()


def test_an_answer_that_is_cut_or_hangs_is_an_engine_that_is_gone() -> None:
    with cutting(hangs=False) as address, pytest.raises(EngineGone, match="broke off its answer"):
        connected(address)
    with cutting(hangs=True) as address, pytest.raises(EngineGone, match="no whole answer within 0.3 s"):
        connected(address)


def test_a_server_of_llama_cpp_that_does_not_tell_its_settings_is_one_line() -> None:
    models = '{"data": [{"id": "m", "owned_by": "llamacpp"}]}'
    with replaying({"/v1/models": models, "/completion": 'data: {"stop": true}\n\n'}) as address:
        with pytest.raises(EngineGone, match="answers without generation_settings"):
            connected(address)


def test_an_engine_that_serves_several_models_needs_one_named() -> None:
    listed = '{"data": [{"id": "a", "owned_by": "somebody"}, {"id": "b", "owned_by": "somebody"}]}'
    with replaying({"/v1/models": listed}) as address:
        with pytest.raises(UserError, match="serves several models: name one with --set model=ID, of a, b"):
            connected(address)
        assert connected(Address(address.url, model="b")).identity == Identity("somebody", "untold", "b", tells="nothing")
    with replaying({"/v1/models": '{"data": []}'}) as address, pytest.raises(EngineGone, match="lists no model"):
        connected(address)


def test_an_engine_may_be_named_where_it_does_not_tell_whose_it_is() -> None:
    with replaying({"/v1/models": '{"data": [{"id": "m"}]}', "/version": '{"version": "1.2"}'}) as address:
        assert connected(Address(address.url, engine="vllm")).identity.name == "vllm 1.2"


def test_paths_of_files_are_no_names_of_models() -> None:
    who = Identity("llama.cpp", "b1", "/home/somebody/models/m.gguf", {"root": "C:\\models\\m", "id": "owner/name"})
    assert who.told == Identity("llama.cpp", "b1", "m.gguf", {"root": "m", "id": "owner/name"})


def test_addresses_with_a_path_or_without_a_port_are_taken() -> None:
    for url in ("http://127.0.0.1:8000", "http://host/engine/v1", "https://host"):
        check_url("url", url)
    assert Address("http://host/engine/v1/").parts == ("http", "host", 80, "/engine")
    assert Address("https://host").parts == ("https", "host", 443, "")
