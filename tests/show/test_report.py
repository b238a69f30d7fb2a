"""The HTML page: its links lead somewhere, it loads nothing, what models and users wrote stays text, and a browser draws it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from command_line import Outcome, harness, isolate, questions, refused, run
from make_ledger import FOLDER as SIMULATED

from harness.common.errors import UserError
from harness.common.progress import Progress
from harness.ledger.ledger import read
from harness.ledger.trees import each_drafts, read_drafts, read_pieces
from harness.metrics import acceptance
from harness.show import page as report
from harness.show.contents import Contents, read_contents
from harness.show.headline import headlines
from harness.show.viewer import viewer_data

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;</textarea>'\"]]>"
VOID = {"meta", "link", "img", "input", "br", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AUDIT_ROW = "L1 exact law,eagle2,16 cases,1e-16,1e-12,1e-12 in any output's probability,{passed},{why},False,False,16,0.1\n"


PREDICTED = """model,machine,method,paper_method,task,temperature,paper_speedup,predicted,verdict
vicuna-7b,a CPU,eagle2,EAGLE-2,Mean,0.0,3.39,3.512,consistent
vicuna-7b,a CPU,eagle2,EAGLE-2,gsm8k,0.0,3.63,1.0149,published is 258% higher
vicuna-7b,a CPU,eagle2,EAGLE-2,gsm8k,1.0,,0.91,no published speedup
vicuna-7b,a CPU,pld,PLD,gsm8k,0.0,1.6,,not predicted: what it drafts depends on the text
vicuna-7b,a CPU,,Other,gsm8k,0.0,1.6,,not predicted: no method of ours
vicuna-7b,another CPU,eagle2,EAGLE-2,gsm8k,0.0,3.63,2.5,published is 45% higher
"""


class Page(HTMLParser):
    """What is in a page: ids, links, sources, attributes that run code, texts. Elements must be closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name in ("src", "srcset", "action", "data", "poster"):
                self.sources.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with trees on a two-turn prompt that is full of markup, an audit and claims beside them that are, too."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        questions(folder / "prompts", "mt_bench", (EVIL, "And now?"))
        outcome = run(folder / "out", "--method eagle1 --method eagle2 --method pld --task mt_bench --source paper --trees",
                      "--max-new-tokens 24 --prompts", folder / "prompts")  # fmt: skip
        assert outcome.code == 0, outcome.err
    audit, claims = folder / "out" / "audit", folder / "out" / "claims"
    audit.mkdir()
    claims.mkdir()
    columns = "layer,method,checked,worst,threshold,detectable,passed,why,blocks,raised,cells,ratio\n"
    (audit / "audit.csv").write_text(
        columns + AUDIT_ROW.format(passed="True", why="") + AUDIT_ROW.format(passed="", why="too few")
    )
    (audit / "lossless.json").write_text(json.dumps({"model": "tiny", "methods": {"eagle2": "lossless (quick)"}}))
    (folder / "out" / "predict").mkdir()
    (folder / "out" / "predict" / "predict.csv").write_text(PREDICTED)
    quoted = EVIL.replace('"', '""')
    (claims / "claims.csv").write_text(f'claim,effect,verdict\n"{quoted}",0.123456789,shown\n')
    return folder


def make(ledger: Path, *words: object) -> Outcome:
    return harness("report --results", ledger / "out", *words)


@pytest.fixture(scope="module")
def html(ledger: Path) -> str:
    outcome = make(ledger, "--prompts", ledger / "prompts")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(ledger / "out" / "report.html")
    return (ledger / "out" / "report.html").read_text(encoding="utf-8")


def data_of(html: str) -> Any:
    return json.loads(Page(html).scripts[0])


# ---- the page as text -----------------------------------------------------------------------------------------------


def test_every_link_leads_to_an_id_of_the_page_or_holds_its_file(html: str) -> None:
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    inside = [link for link in page.links if link.startswith("#")]
    assert {"#tables", "#plots", "#lossless", "#claims", "#predicted", "#viewer"} <= set(inside)
    assert [link for link in inside if link[1:] not in page.ids] == []
    others = [link for link in page.links if not link.startswith("#")]
    assert all(link.startswith("data:") for link in others)
    tables = [base64.b64decode(link.split(",", 1)[1]).decode() for link in others if link.startswith("data:text/csv")]
    assert tables and all("," in text.splitlines()[0] and len(text.splitlines()) > 1 for text in tables)


def test_the_page_loads_nothing_and_says_so_to_the_browser(html: str) -> None:
    page = Page(html)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "default-src 'none'" in html and not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "@import" not in html and "url(" not in html and "fetch(" not in html


def test_what_others_wrote_stays_text(html: str) -> None:
    page = Page(html)
    assert page.tags.count("script") == 2 and page.handlers == []  # the data and the viewer: no third one came in
    assert EVIL not in html and EVIL in page.text  # the claim, as it was written
    prompts = {g["prompt"] for g in json.loads(page.scripts[0])}
    assert prompts == {EVIL, "And now?"}


def test_backticks_become_code_and_nothing_else_becomes_markup() -> None:
    assert report._code("`<b>` and <i>, a ` alone") == "<code>&lt;b&gt;</code> and &lt;i&gt;, a ` alone"


def test_the_viewers_data_are_the_ledgers(html: str, ledger: Path) -> None:
    data = data_of(html)
    records = {r["key"]: r for r in read(ledger / "out") if not r["is_warmup"]}
    drafts, pieces = read_drafts(ledger / "out"), read_pieces(ledger / "out")
    assert len(data) == sum(len(d.sizes) > 0 for d in drafts.values())
    shown = {(tuple(g["sizes"]), tuple(g["accepted"]), tuple(g["pieces"][i] for i in g["ids"])) for g in data}
    assert shown == {
        (tuple(d.sizes), tuple(d.accepted), tuple(pieces[records[k]["cell"]][t] for t in records[k]["token_ids"]))
        for k, d in drafts.items()
    }
    for g in data:
        assert len(g["tokens"]) == len(g["parents"]) == sum(g["sizes"]) and len(g["path"]) == sum(g["accepted"])
        assert g["confidence"] is None or len(g["confidence"]) == len(g["tokens"])


def test_tables_losslessness_and_claims_are_in_it(html: str) -> None:
    text = " ".join(Page(html).text.split())
    for part in ("Speedup and τ", "Acceptance in the drafted trees", "L1 exact law", "eagle2: lossless (quick)", "not judged",
                 "too few", "0.1235", "Acceptance against confidence, T = 0", "Weights: target"):  # fmt: skip
        assert part in text
    assert "Not in this page" not in text  # it lacks nothing


def test_predictions_stand_beside_what_was_published_a_table_a_machine(ledger: Path) -> None:
    one, two = report._predictions(ledger / "out")
    assert (one.title, two.title) == ("vicuna-7b on a CPU", "vicuna-7b on another CPU")
    assert [name for name, _ in one.columns] == ["", "gsm8k", "six-task mean"]
    cells = [[(text.replace("\u00a0", " "), css) for text, css in row] for row in one.rows]
    assert cells == [
        [("eagle2, T = 0", ""), ("1.01 / 3.63×", ""), ("3.51 / 3.39×", "good")],
        [("eagle2, T = 1", ""), ("0.91 / —", ""), ("—", "")],
    ]
    assert one.facts == ("Not predicted: pld: what it drafts depends on the text; Other: no method of ours.",)
    assert two.facts == () and two.rows[0][1] == ("2.50 / 3.63×", "")


def test_the_page_begins_with_a_headline_and_ends_with_the_viewer(html: str) -> None:
    page = Page(html)
    assert [i for i in page.ids if i in ("tables", "plots", "lossless", "claims", "viewer")] == [
        "tables", "plots", "lossless", "claims", "viewer"
    ]  # fmt: skip
    head = " ".join(page.text.split()).split("Tables Plots")[0]
    assert "methodspeedupτlossless?" in head and "EAGLE-2" in head and "lossless (quick)" in head
    assert "Claims of the paper: 1 shown" in head and "vanilla steps and yields" in head


def test_the_headline_has_the_numbers_of_the_summaries() -> None:
    (greedy, sampled) = headlines(contents_of(SIMULATED))
    cells = [s for s in contents_of(SIMULATED).summaries if (s.method, s.preset, s.temperature) == ("eagle2", "paper", 0)]
    first = greedy.rows.iloc[0]
    assert first["method"] == "EAGLE-2" and "T = 0, means over the six tasks" in greedy.title
    assert first["speedup"] == f"{np.mean([c.speedup for c in cells]):.2f}×"
    assert first["τ"] == f"{np.mean([c.tau for c in cells]):.2f}"
    assert greedy.rows["method"].tolist()[-1] == "EAGLE-1"  # the fastest on the same tasks
    assert sampled.title.endswith("T = 1, on gsm8k")


def test_claims_are_counted_by_their_verdicts(tmp_path: Path) -> None:
    verdicts = ["shown", "shown", "the opposite is shown in every task", "not shown: x", "not so: below the range",
                "not judged: y", "not measured: z", "not comparable: w"]  # fmt: skip
    (tmp_path / "claims").mkdir()
    pd.DataFrame({"claim": "c", "verdict": verdicts}).to_csv(tmp_path / "claims" / "claims.csv", index=False)
    assert report._claims_counted(tmp_path) == (
        "Claims of the paper: 2 shown, 1 contradicted (the opposite is shown), 2 not shown, 3 not judged or not measured"
    )


def contents_of(folder: Path) -> Contents:
    return read_contents(folder, Progress("test"))


def test_verdicts_are_coloured_and_a_claim_of_the_same_word_is_not() -> None:
    words = {"shown": "good", "the opposite is shown": "bad", "not so: below the range": "bad", "not shown": "bad",
             "not judged: x": "words", "not comparable: x": "words"}  # fmt: skip
    block = report._block("", pd.DataFrame({"claim": ["lossless"] * len(words), "verdict": list(words)}))
    for (claim, verdict), colour in zip(block.rows, words.values(), strict=True):
        assert claim[1] == "words" and colour in verdict[1].split()


def test_each_of_several_models_audits_is_in_the_page(tmp_path: Path) -> None:
    columns = "layer,method,checked,worst,threshold,detectable,passed,why\n"
    for model in ("big", "small"):
        (tmp_path / "audit" / model).mkdir(parents=True)
        (tmp_path / "audit" / model / "audit.csv").write_text(columns + "L1 exact law,eagle2,16 cases,0,0,0,True,\n")
    assert [block.title for block in report._losslessness(tmp_path)] == ["big, L1 exact law", "small, L1 exact law"]


def test_prompts_of_others_are_shown_only_where_asked_for(ledger: Path) -> None:
    folder = ledger / "out"
    data = viewer_data(folder, read(folder), acceptance.counted(each_drafts(folder)), 24)
    assert data and {g["prompt"] for g in data} == {None}


def test_generations_are_spread_over_methods_before_any_comes_twice(ledger: Path) -> None:
    records, folder = read(ledger / "out"), ledger / "out"
    for n in (0, 2, 3):
        data = viewer_data(folder, records, acceptance.counted(each_drafts(folder)), n)
        assert len(data) == n and len({g["name"].split(",")[0] for g in data}) == n


def test_a_ledger_without_trees_audit_or_claims_has_no_such_sections_and_one_line_that_says_so() -> None:
    page = Page(report.page(SIMULATED, 24))
    assert {"viewer", "lossless", "claims", "predicted"} & set(page.ids) == set() and {"tables", "plots"} <= set(page.ids)
    (line,) = [line for line in page.text.splitlines() if "Not in this page" in line]
    assert (
        "--trees" in line
        and "harness verify --model toy --results DIR --out DIR/audit" in line
        and "harness claims --results" in line
        and "harness predict --out DIR/predict" in line
    )
    assert page.scripts == [] and [link for link in page.links if link.startswith("#") and link[1:] not in page.ids] == []


def test_what_a_user_gets_wrong_is_one_line(ledger: Path, tmp_path: Path) -> None:
    refused(make(ledger, "--generations -1"), "--generations is -1")
    refused(make(ledger, "--out", tmp_path), str(tmp_path), "file name")
    refused(make(ledger, "--prompts", tmp_path / "none"), "no such folder")
    refused(harness("report --results", tmp_path), "no records in")
    shutil.copytree(ledger / "out", tmp_path / "spoilt")
    (tmp_path / "spoilt" / "audit" / "audit.csv").write_text("a,b\n1,2\n")
    refused(harness("report --results", tmp_path / "spoilt"), "audit.csv", "harness verify")
    (tmp_path / "spoilt" / "audit" / "audit.csv").unlink()
    (tmp_path / "spoilt" / "predict" / "predict.csv").write_text("a,b\n1,2\n")
    refused(
        harness("report --results", tmp_path / "spoilt"), "predict.csv is not what `harness predict` writes (no column model)"
    )


# ---- the page in a browser ------------------------------------------------------------------------------------------


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
               "--window-size=1280,1100", *options, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_browser_draws_the_tree_and_runs_nobody_elses_script(html: str, ledger: Path, tmp_path: Path) -> None:
    page = ledger / "out" / "report.html"
    done = browse(page, tmp_path / "profile", "--dump-dom")
    assert done.returncode == 0, done.stderr
    dom = Page(done.stdout)
    assert "svg" in dom.tags and "nodes drafted" in dom.text and "<title>Decoding methods on tiny</title>" in done.stdout
    data = data_of(html)
    first = next(g for g in data if g["method"] == "eagle2")
    assert f" of {len(first['sizes'])}" in dom.text and f"{first['sizes'][0]} nodes drafted" in dom.text
    alone = tmp_path / "alone.html"  # the viewer is below what the window shows
    alone.write_text(html.replace("</style>", "header, nav, #tables, #plots, #lossless, #claims { display: none }</style>"))
    picture = tmp_path / "page.png"
    assert browse(alone, tmp_path / "profile", f"--screenshot={picture}").returncode == 0
    pixels = matplotlib.image.imread(picture)[..., :3]
    green, blue = (np.array(c) / 255 for c in ((10, 107, 75), (213, 229, 246)))  # accepted nodes, confidence
    assert pixels.shape[:2] == (1100, 1280)
    for colour in (green, blue):
        assert (np.abs(pixels - colour).max(axis=-1) < 0.02).sum() > 500


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_keys_step_through_a_generation(html: str, tmp_path: Path) -> None:
    """Each key is pressed by a script added to a copy of the page, which writes down where the viewer then stands."""
    pressed = """<script>
    const seen = [], stand = () => document.getElementById("which").value + " " + document.getElementById("number").textContent;
    const press = key => document.getElementById("tree").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "PageDown", "PageUp"]) {
      press(key);
      seen.push(stand());
    }
    document.title = JSON.stringify(seen);
    </script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(html.replace("</body>", pressed), encoding="utf-8")
    done = browse(copy, tmp_path / "profile", "--dump-dom")
    seen = json.loads(done.stdout.split("<title>")[1].split("</title>")[0])
    data = data_of(html)
    which = next(i for i, g in enumerate(data) if g["method"] == "eagle2")
    n, following = len(data[which]["sizes"]), (which + 1) % len(data)
    assert n > 2
    assert seen == [*(f"{which} {at} of {n}" for at in (1, 2, 3, 2, n)),
                    f"{following} 1 of {len(data[following]['sizes'])}", f"{which} 1 of {n}"]  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_the_accepted_path_is_in_view(html: str, tmp_path: Path) -> None:
    """At every forward of every generation the last accepted node stands in the part of the tree that is seen."""
    looked = """<script>
    const box = document.getElementById("tree"), out = [];
    box.style.width = "420px"; box.style.maxHeight = "160px";  // too small for a tree
    const press = key => box.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    press("Home");
    for (let i = 0; i < 30; i++) {
      const solid = [...box.querySelectorAll("rect")].filter(r => r.getAttribute("fill") === "#0a6b4b");
      const last = solid.at(-1)?.getBoundingClientRect(), seen = box.getBoundingClientRect();
      if (last) out.push(last.left >= seen.left - 1 && last.right <= seen.right + 1
        && last.top >= seen.top && last.bottom <= seen.bottom);
      press("ArrowRight");
    }
    document.title = JSON.stringify(out);
    </script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(html.replace("</body>", looked), encoding="utf-8")
    done = browse(copy, tmp_path / "profile", "--dump-dom")
    seen = json.loads(done.stdout.split("<title>")[1].split("</title>")[0])
    assert len(seen) > 2 and all(seen)


def test_the_page_has_what_a_replay_of_policies_left(tmp_path: Path) -> None:
    """A table a temperature and costs; a file of something else is one line."""
    assert report._which_tree(tmp_path) == []
    (tmp_path / "tables").mkdir()
    head = "model,temperature,method,preset,task,statistic,value,value_low,value_high,conversations,costs,p\n"
    rows = [
        "tiny,0,opt-tree,chosen,mean,speed,1.51,1.4,1.62,10,gpu-radar,", "tiny,0,opt-tree,chosen,gsm8k,speed,1.7,,,5,gpu-radar,",
        "tiny,0,opt-tree,chosen,mean,over eagle2-grid,1.02,0.99,1.05,10,gpu-radar,0.21",
        "tiny,0,eagle2-grid,chosen,mean,speed,1.48,,,10,gpu-radar,", "tiny,1,eagle2-grid,chosen,mean,speed,1.2,,,10,gpu-vllm,",
    ]  # fmt: skip
    (tmp_path / "tables" / "which-tree-pays.csv").write_text(head + "\n".join(rows) + "\n")
    first, second = report._which_tree(tmp_path)
    assert (first.title, second.title) == ("T = 0, gpu-radar", "T = 1, gpu-vllm")
    assert [cell[0] for cell in first.rows[0]] == ["opt-tree", "1.51× [1.40, 1.62]", "1.02 [0.99, 1.05]", "0.21", *["—"] * 3]
    assert [cell[0] for cell in first.rows[1]][:4] == ["eagle2-grid", "1.48×", "—", "—"]
    (tmp_path / "tables" / "which-tree-pays.csv").write_text("method\nx\n")
    with pytest.raises(UserError, match="no column temperature"):
        report._which_tree(tmp_path)
