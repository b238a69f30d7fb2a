"""The paper's prompts, byte for byte: golden strings written from what its scripts send, and FastChat where it is installed."""

from __future__ import annotations

import hashlib

import pytest

from harness.load.chat import LLAMA_SYSTEM, PAPER_SYSTEM, VICUNA_SYSTEM, llama2, llama3, system_text, vicuna

ONE = [("user", "What is 2 + 2?")]
TWO = [*ONE, ("assistant", " Four.\n"), ("user", "And 3 + 3?")]
BEGIN, SYSTEM, USER, ASSISTANT, END = (
    "<|begin_of_text|>", "<|start_header_id|>system<|end_header_id|>\n\n", "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
)  # fmt: skip


@pytest.mark.parametrize(
    ("render", "system", "turns", "golden"),
    [
        (vicuna, VICUNA_SYSTEM, ONE, VICUNA_SYSTEM + " USER: What is 2 + 2? ASSISTANT:"),
        (vicuna, VICUNA_SYSTEM, TWO, VICUNA_SYSTEM + " USER: What is 2 + 2? ASSISTANT: Four.</s>USER: And 3 + 3? ASSISTANT:"),
        (llama2, LLAMA_SYSTEM, ONE, f"[INST] <<SYS>>\n{LLAMA_SYSTEM}\n<</SYS>>\n\nWhat is 2 + 2? [/INST] "),
        (llama2, "Be brief.", TWO,
         "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is 2 + 2? [/INST] Four. </s><s>[INST] And 3 + 3? [/INST] "),
        (llama2, "", ONE, "[INST] What is 2 + 2? [/INST] "),
        (llama3, "Be brief.", ONE, f"{BEGIN}{SYSTEM}Be brief.{END}{USER}What is 2 + 2?{END}{ASSISTANT}"),
        (llama3, "", TWO,
         f"{BEGIN}{USER}What is 2 + 2?{END}{ASSISTANT}Four.{END}{USER}And 3 + 3?{END}{ASSISTANT}"),
    ],
)  # fmt: skip
def test_a_prompt_is_byte_for_byte_what_the_papers_scripts_send(render, system, turns, golden) -> None:
    assert render(system, turns) == golden


def test_the_system_prompts_are_the_published_ones() -> None:
    assert VICUNA_SYSTEM.startswith("A chat between a curious user and an artificial intelligence assistant. The assistant gives")
    assert VICUNA_SYSTEM.endswith("polite answers to the user's questions.") and len(VICUNA_SYSTEM) == 154
    assert "while being safe.  Your answers" in LLAMA_SYSTEM and "positive in nature.\n\nIf a question" in LLAMA_SYSTEM
    # of the texts as the authors' scripts have them
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in PAPER_SYSTEM.items()}
    assert digests == {"vicuna_v1.1": "1fa69e2371b762d1", "llama-2": "d52c188a3c969c4e", "llama-3": "d52c188a3c969c4e"}


def test_a_system_prompt_is_the_papers_none_or_ones_own() -> None:
    assert system_text("llama-2", "paper") == LLAMA_SYSTEM and system_text("llama-2", "none") == ""
    assert system_text("vicuna_v1.1", "Be brief.") == "Be brief." and system_text("tokenizer", "paper") == ""


@pytest.mark.parametrize("system", ["paper", "none", "Be brief."])
@pytest.mark.parametrize(
    "answers",
    [["Four.", "Six."], ["", "Six."], ["  Four.\n\n", ""], ["Two </s> in it", "[/INST]"]],
    ids=["plain", "empty", "padded", "marks"],
)
@pytest.mark.parametrize(("ours", "template"), [(vicuna, "vicuna_v1.1"), (llama2, "llama-2")])
def test_fastchats_own_templates_agree(ours, template: str, answers: list[str], system: str) -> None:
    """The scripts take FastChat's template, set the system prompt, strip answers, and add a space to LLaMA-2's."""
    conversation = pytest.importorskip("fastchat.conversation").get_conv_template(template)
    conversation.system_message = system_text(template, system)
    turns = []
    for question, answer in zip(["What is 2 + 2?", " And\n3 + 3? "], answers, strict=True):
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], None)
        turns.append(("user", question))
        assert ours(system_text(template, system), turns) == conversation.get_prompt() + " " * (template == "llama-2")
        conversation.messages[-1][-1] = answer.strip()
        turns.append(("assistant", answer))
