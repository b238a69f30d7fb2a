"""Tables from records: for the terminal, as Markdown and LaTeX for people, as CSV for programs.

What is shown is rounded text; the CSV beside it has the numbers. A setting (model, temperature, dtype, threads, budget,
machine) is a section of its own: nothing is averaged over two of them.
"""

from __future__ import annotations

# How to read each table; under it in every form.
READING = {
    "audit": """audit: what `harness verify` found on this model (`audit/audit.md`): `lossless`, or the layer that a method
        fails, or `open` where a layer could not judge it; a preset whose outputs it was not given has its method's word.""",
    "main": """Each cell: speedup over vanilla on the same prompts (seconds per token, prefill included) / τ (tokens per
        target forward after prefill); in brackets τ over outputs where neither arm fell into a loop. "on n": on n
        prompts only, fewer than the column's, and so are the means over such cells.""",
    "models": """Each cell: speedup over vanilla / τ, in brackets τ without looping outputs; the mean of the six tasks, or
        MT-bench where not all six were measured.""",
    "cells": """In square brackets 95 % intervals (paired bootstrap over conversations; none under 5). Decode: speedup
        without the prefill and its token. c: what one step costs inside the target's forward, inside the drafter's and
        outside both, in vanilla steps; decode = τ / (c_verify + c_draft + c_other).
        Identical: conversations token for token vanilla's, T = 0 only. Official, official τ: what the reference's own
        scripts would have printed for these generations (table `official`).""",
    "official": """What the reference's own evaluation scripts would have printed for the same generations, and from what it
        differs: official = speedup × per question × past the end × re-tokenised. Per question: means of per-question
        speeds, first repeats only, where we divide totals. Past the end: the method's tokens past stop id and limit
        count, its last bonus token does not. Re-tokenised: vanilla's text tokenised again, minus one, where we count
        vanilla's tokens; the one is for a BOS, and where the tokenizer adds none the baseline is a token a turn short.
        Bookkeeping: official / speedup - 1. Official τ: over the index of the last step, which is from 0. Goes on: turns
        after which the reference would have made one forward more (it sees a stop id drawn as bonus token a step later,
        and stops only past the limit), which is in no number here; nor are its baseline's last, unused forward and its
        longer length limit.""",
    "means": """Unweighted means over the six tasks, with 95 % intervals (paired bootstrap, conversations drawn again within each
        task). Speedup: seconds per token, prefill included; decode: without the prefill and its token. c: what one step costs
        inside the target's forward, inside the drafter's and outside both, in vanilla steps.""",
    "categories": """MT-bench by category. Each cell: speedup / τ; in brackets τ over outputs where neither looped.""",
    "paired": """eagle2 against another method on the same prompts, with paired 95 % intervals: the difference in τ is
        eagle2's less the other's, ratios are eagle2's over the other's. No loops: outputs where neither looped.""",
    "divergences": """Outputs at T = 0 that are not vanilla's: the first token that differs, by token id; what follows
        is not comparable.""",
    "compare": """On the prompts that both hold, with paired 95 % intervals: the difference in τ is B's less A's, ratios
        are B's over A's; speedup is over vanilla in the same folder. No loops: outputs where neither looped.
        Same outputs: conversations token for token equal.
        Differs: what is not the same besides; timings from two machines are not comparable, τ is.""",
    "run": """τ in brackets: over outputs where neither arm looped. Square brackets: 95 % intervals, none under 5
        prompts.""",
}
READING = {name: " ".join(text.split()) for name, text in READING.items()}
