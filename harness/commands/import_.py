"""`harness import`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option


@click.command(
    "import",
    epilog=examples(
        "harness import answers.jsonl --baseline plain.jsonl --out results/theirs",
        "harness import vllm-eagle3.json --baseline vllm-plain.json --out results/served",
    ),
)
@click.argument("file", type=PATH)
@option("--baseline", type=PATH, default=None, metavar="FILE", help="The plain decoding's answers, or its benchmark.")
@option("--tokenizer", default=None, metavar="DIR|MODEL|HUB_ID", help="Counts texts again, for the official formula.")
@option("--out", type=PATH, required=True, metavar="DIR", help="A ledger folder of its own.")
def command(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> None:
    """Read an answer file of EAGLE or Spec-Bench, or a benchmark of SpecForge, SGLang, vLLM or AIPerf; print what it shows."""
    from harness.exchange.imported import import_command

    click.echo(import_command(file, baseline, tokenizer, out))
