"""`harness export-head`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, include_all, include_option, model_option, option


@click.command(
    "export-head",
    epilog=examples(
        "harness export-head models/heads/smollm2-135m --format sglang --out for-sglang",
        "harness export-head my-head --model vicuna-7b --format eagle --out for-the-authors-code",
    ),
)
@click.argument("folder", type=PATH, metavar="DIR")
@model_option
@option(
    "--format", "format_", required=True, metavar="eagle|eagle3|specforge|speculators|vllm|sglang", help="Whose layout to write."
)
@option("--out", type=PATH, required=True, metavar="DIR", help="Where to write: config.json and model.safetensors.")
@option("--target", "address", default=None, metavar="DIR|HUB_ID", help="What the target is called there (default: by its YAML).")
@include_option
def command(folder: Path, model: str, format_: str, out: Path, address: str | None, includes: tuple[Path, ...]) -> None:
    """Write a draft head so that it loads in another project, and say how to serve it there."""
    from harness.exchange.heads.export_head import export_head

    include_all(includes)
    for line in export_head(folder, format_, out, model, address):
        click.echo(line)
