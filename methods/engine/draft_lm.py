"""A draft language model: a small LLaMA that shares the target's vocabulary and reads tokens, not features.

`NarrowLM` is one made for a target: a few layers of a width of their own between the target's embedding and LM head, which stay
as they are, and a projection at each end. For drafting the projections are folded into tables of that width (`folded`): it is
then a plain LLaMA like any draft LM of the hub, and its LM head costs as little as it is narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaModel

from methods.engine.clock import ForwardClock
from methods.engine.layer import DecoderLayer, Linear, Norm, attend_over, causal, level_mask, rotary_rows
from methods.engine.llama import is_plain_llama
from methods.engine.transfer import sent


@dataclass(frozen=True, slots=True)
class NarrowConfig:
    """`hidden_size` and `vocab_size` are the target's; heads are 64 wide, or as wide as the model where that is narrower."""

    hidden_size: int
    vocab_size: int
    width: int
    num_layers: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float

    def llama(self) -> LlamaConfig:
        heads = self.width // min(self.width, 64)
        return LlamaConfig(
            vocab_size=self.vocab_size, hidden_size=self.width, intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers, num_attention_heads=heads, num_key_value_heads=heads,
            rms_norm_eps=self.rms_norm_eps, rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            max_position_embeddings=2**17,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip


class NarrowLM(nn.Module):
    """The weights as they are trained and shipped: `down`, `trunk` (layers and norm), `up`."""

    def __init__(self, config: NarrowConfig):
        super().__init__()
        self.config = config
        self.down = nn.Linear(config.hidden_size, config.width, bias=False)
        trunk: Any = LlamaModel(config.llama())
        trunk.embed_tokens = None  # its inputs are the target's embeddings, projected
        self.trunk = trunk
        self.up = nn.Linear(config.width, config.hidden_size, bias=False)

    def forward(self, embedded: Tensor) -> Tensor:
        """The target's embeddings of a text [b, n, hidden] -> what its LM head reads after each token [b, n, hidden]."""
        out: Tensor = self.trunk(inputs_embeds=self.down(embedded), use_cache=False).last_hidden_state
        return self.up(out)

    @torch.no_grad()
    def folded(self, embedding: Tensor, lm_head: Tensor) -> LlamaForCausalLM:
        """The same model with tables of its own. embedding, lm_head: the target's [vocab, hidden]; in their dtype and place."""
        model: Any = LlamaForCausalLM(self.config.llama())
        wide = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        down, up = (p.weight.to(embedding.device, wide) for p in (self.down, self.up))
        state = {f"model.{name}": value for name, value in self.trunk.state_dict().items()}
        state["model.embed_tokens.weight"] = embedding.to(wide) @ down.T
        state["lm_head.weight"] = lm_head.to(embedding.device, wide) @ up
        model.to(wide).load_state_dict(state)
        model.to(embedding.device, embedding.dtype).eval()
        made: LlamaForCausalLM = model
        return made


class LMDrafter:
    """Implements methods.base.Drafter with a plain LLaMA of transformers, `model`; features are not looked at.

    Entries are real tokens of a real text, so the keys and values of those that were accepted are kept: of a chain whose drafts
    are all accepted the last, which was not run yet, and the bonus token are left to run.
    """

    attend_over = staticmethod(attend_over)

    def __init__(self, model: Any, packed: bool = True):
        if not is_plain_llama(model):
            raise ValueError(
                f"a draft LM must be a plain LLaMA (no biases, SiLU, fixed rotary table), not {type(model).__name__}"
            )
        model.generation_config = GenerationConfig()  # no samplers of a repository's own in `hf-assisted`
        self.model, c = model, model.config
        self.embedding = model.get_input_embeddings().weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        heads, self._kv_heads = c.num_attention_heads, c.num_key_value_heads
        self._group, self._head_dim = heads // self._kv_heads, c.head_dim or c.hidden_size // heads
        self._layers = [DecoderLayer(m, heads, self._kv_heads, c.rms_norm_eps, packed=packed) for m in model.model.layers]
        self._norm, self._lm_head = (
            Norm(model.model.norm.weight, c.rms_norm_eps, packed),
            Linear(model.lm_head.weight, packed=packed),
        )
        self._clock = ForwardClock(self.device)
        self._capacity = self._n = self._n_entries = self._level = 0
        self._unread: list[int] = []  # the text's first token, until it is run with the others
        self._levels: list[tuple[Tensor, Tensor] | tuple[list[int], list[int]]] = []  # tokens and parents of entries, in order
        self._hidden = torch.empty(0)  # [1, width] after the root

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        if frequent is not None:
            raise ValueError(f"frequent={frequent}: a draft LM has no list of frequent tokens")
        self._n = self._n_entries = self._level = 0
        self._unread = [] if first is None else [first]
        self._levels.clear()
        if room + 1 > self._capacity:
            self._capacity = -(-(room + 1) // 256) * 256
            shape = (len(self._layers), self._kv_heads, self._capacity, self._head_dim)
            self._keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
            self._values = torch.zeros(shape, dtype=self.dtype, device=self.device)
            positions = torch.arange(self._capacity, device=self.device)[None]
            cos, sin = self.model.model.rotary_emb(self.embedding[:0], positions)
            self._cos, self._sin = rotary_rows(cos[0], sin[0])

    def named(self, columns: Tensor) -> Tensor:
        return columns

    def _run(self, tokens: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        """tokens [m], positions [m] -> hidden states [m, width] before the norm; keys and values written at `at`."""
        x, rotary = F.embedding(tokens, self.embedding), (self._cos[positions], self._sin[positions])
        for i, layer in enumerate(self._layers):
            x = layer(x, rotary, self.attend_over(self._keys[i], self._values[i], at, mask))
        return x

    def _known(self, tokens: list[int]) -> list[int]:
        """The entries that are the first of these tokens. The last token is run anew in any case, for what follows it."""
        path: list[int] = []
        keys: list[tuple[int, int]] = []  # of each entry its parent and its token
        for drafted, parents in self._levels:
            ids, above = (x.tolist() if isinstance(x, Tensor) else x for x in (drafted, parents))
            keys += zip(above, ids, strict=True)
        entry_of = {key: i for i, key in reversed(list(enumerate(keys)))}  # of equal ones the first
        for token in tokens[:-1]:
            entry = entry_of.get((path[-1] if path else -1, token))
            if entry is None:
                break
            path.append(entry)
        return path

    def _note(self, tokens: Tensor, parents: Tensor) -> None:
        """A level's entries. What they are is read when it is asked for, unless it was told meanwhile."""
        self._levels.append((tokens, parents))
        self._n_entries += len(tokens)

    def remember(self, tokens: list[int], parents: list[int]) -> None:
        """What this step's entries are, in order, from who has read them back already; parents: entries, -1 for the root."""
        self._levels = [(tokens, parents)]

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        path = self._known(tokens)
        at = self._n + len(path)
        ids = [*self._unread, *tokens[len(path) :]]
        with self._clock:
            if path != list(range(len(path))):
                index = sent(path, self.device) + self._n
                for kept in (self._keys, self._values):
                    kept[:, :, self._n : at] = kept.index_select(2, index)
            positions = torch.arange(at, at + len(ids), device=self.device)
            mask = causal(len(ids), at, self.dtype, self._group, self.device)
            self._hidden = self._norm(self._run(sent(ids, self.device), positions, at, mask)[-1:])
        self._unread, self._n, self._n_entries, self._level = [], at + len(ids), 0, 0
        self._levels.clear()

    @property
    def forward_s(self) -> float:
        return self._clock.seconds

    def rewind(self, n: int) -> None:
        """Forget the last n tokens: for measuring a step at one place over and over."""
        self._n -= n

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        with self._clock:
            return self._lm_head(self._hidden)

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        m, mask = len(tokens), level_mask(sees, self._n, self.dtype, self._group, self.device)
        positions, at = torch.full((m,), self._n + self._level, device=self.device), self._n + self._n_entries
        self._note(tokens, parents)
        with self._clock:
            out = self._run(sent(tokens, self.device), positions, at, mask)
            logits = self._lm_head(self._norm(out))
        self._level += 1
        return logits
