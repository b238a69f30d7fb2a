"""Prompt formats of the paper's three families, byte for byte what its evaluation scripts feed the models.

Facts, from the scripts and from FastChat's templates, which they use:
- Vicuna's and LLaMA-2's texts hold no BOS; the tokenizer puts one in front. LLaMA-2's get one more space at the end;
- LLaMA-3's come from the tokenizer's own template, BOS included;
- answers go into the next turn stripped, and without the texts of special tokens, should a model spell one out; an empty answer
  leaves its closing mark out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_SYSTEM = (  # two spaces after "safe.": part of what was evaluated
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  Your answers "
    "should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
    "responses are socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the answer to a question, please don't "
    "share false information."
)
PAPER_SYSTEM: Mapping[str, str] = {"vicuna_v1.1": VICUNA_SYSTEM, "llama-2": LLAMA_SYSTEM, "llama-3": LLAMA_SYSTEM}

Turns = Sequence[tuple[str, str]]  # (role, text): user, assistant, user, .. ending with a user's


def system_text(template: str, system: str) -> str:
    """What `system: paper|none|TEXT` means under a template; empty where there is no system prompt."""
    return {"paper": PAPER_SYSTEM.get(template, ""), "none": ""}.get(system, system)


def without_marks(turns: Turns, marks: Sequence[str]) -> Turns:
    """The turns, the texts of special tokens taken out of every answer."""

    def cleared(text: str) -> str:
        for mark in marks:
            text = text.replace(mark, "")
        return text

    return [(role, cleared(text) if role == "assistant" else text) for role, text in turns]


def vicuna(system: str, turns: Turns) -> str:
    """Vicuna v1.1's prompt."""
    text = f"{system} "
    for role, said in turns:
        if role == "user":
            text += f"USER: {said} ASSISTANT:"
        elif said.strip():
            text += f" {said.strip()}</s>"
    return text


def llama2(system: str, turns: Turns) -> str:
    """LLaMA-2-chat's prompt."""
    text = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if system else "[INST] "
    for i, (role, said) in enumerate(turns):
        if role == "user":
            text += f"{'[INST] ' if i else ''}{said} [/INST]"
        elif said.strip():
            text += f" {said.strip()} </s><s>"
    return text + " "


def llama3(system: str, turns: Turns) -> str:
    """What LLaMA-3's own template renders. The tokenizer's is checked against this, then used."""
    said = ([("system", system)] if system else []) + [(role, text) for role, text in turns]
    blocks = (f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.strip()}<|eot_id|>" for role, text in said)
    return f"<|begin_of_text|>{''.join(blocks)}<|start_header_id|>assistant<|end_header_id|>\n\n"


RENDERED_WITHOUT_BOS: Mapping[str, Callable[[str, Turns], str]] = {"vicuna_v1.1": vicuna, "llama-2": llama2}
