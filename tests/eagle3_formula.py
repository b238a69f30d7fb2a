"""The forwards of draft heads written out in float64, slowly and over whole texts: what any drafter of theirs must compute.

EAGLE and EAGLE-2 (arXiv 2401.15077): x_i = fc([e(t_{i+1}); f_i]); one LLaMA layer without input norm; logits are the target's.
EAGLE-3 (arXiv 2503.01840): see `eagle3_states`. Tensors and config.json are those on the disk, by the names of SafeAILab's and
SpecForge's layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def frequencies(config: Config, d: int) -> list[float]:
    """Radians a position of the d/2 pairs: theta^(-2j/d), stretched as `rope_scaling` says (types linear and llama3)."""
    plain = [config["rope_theta"] ** (-2 * j / d) for j in range(d // 2)]
    s = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = s.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind == "linear":
        return [f / s["factor"] for f in plain]
    low, high, out = s["low_freq_factor"], s["high_freq_factor"], []
    for f in plain:
        turns = s["original_max_position_embeddings"] * f / (2 * math.pi)  # over the positions that it was trained on first
        kept = min(max((turns - low) / (high - low), 0), 1)
        out.append(kept * f + (1 - kept) * f / s["factor"])
    return out


def rotated(x: Tensor, turns: Sequence[float]) -> Tensor:
    """x [heads, n, d]: of row i components j and j + d/2 are a complex number, turned by i * turns[j]."""
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None].double() * torch.tensor(turns, dtype=torch.float64)
    turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def layer(tensors: Tensors, name: str, config: Config, read: Tensor, residual: Tensor) -> Tensor:
    """A LLaMA layer whose attention reads `read` [n, wide], causally, and whose residual is `residual` [n, hidden]."""
    n_heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    d, n = config.get("head_dim") or config["hidden_size"] // n_heads, len(read)

    def w(part: str) -> Tensor:
        return tensors[f"{name}.{part}.weight"].double()

    q, k, v = ((read @ w(f"self_attn.{x}_proj").T).view(n, -1, d).transpose(0, 1) for x in "qkv")
    q, k = (rotated(x, frequencies(config, d)) for x in (q, k))
    heads = []
    for h in range(n_heads):
        kv = h * kv_heads // n_heads
        scores = (q[h] @ k[kv].T / d**0.5).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[kv])
    x = residual + torch.cat(heads, dim=-1) @ w("self_attn.o_proj").T
    normed = rms(x, tensors[f"{name}.post_attention_layernorm.weight"], config["rms_norm_eps"])
    return x + (F.silu(normed @ w("mlp.gate_proj").T) * (normed @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T


# ---- EAGLE, EAGLE-2 ---------------------------------------------------------------------------------------------------


def eagle_features(tensors: Tensors, config: Config, embedded: Tensor, features: Tensor) -> Tensor:
    """embedded: e(t_{i+1}) [n, hidden]; features: f_i [n, hidden] -> predicted f_{i+1} [n, hidden]."""
    x = torch.cat([embedded, features], dim=-1) @ tensors["fc.weight"].double().T
    if "fc.bias" in tensors:
        x = x + tensors["fc.bias"].double()
    return layer(tensors, "layers.0", config, x, x)


def eagle_logits(
    tensors: Tensors, config: Config, embedding: Tensor, lm_head: Tensor, tokens: Sequence[int], features: Tensor,
    drafted: Sequence[int],
) -> Tensor:  # fmt: skip
    """Logits [vocab] after `drafted`, which hangs on the pairs (f_i, t_{i+1}), i = 0 .. n-1, of a text. tokens: t_1 .. t_n."""
    ids, x = list(tokens), features.double()
    for token in drafted:
        x = torch.cat([x, eagle_features(tensors, config, embedding[ids].double(), x)[-1:]])
        ids.append(token)
    return eagle_features(tensors, config, embedding[ids].double(), x)[-1] @ lm_head.double().T


# ---- EAGLE-3 ----------------------------------------------------------------------------------------------------------


def fused(tensors: Tensors, config: Config, states: Tensor) -> Tensor:
    """states [n, k * hidden]: the target's hidden states side by side, low to high -> the states h of the pairs [n, hidden]."""
    hidden, eps = config["hidden_size"], config["rms_norm_eps"]
    x = states.double()
    if (config.get("eagle_config") or {}).get("norm_before_fc"):
        x = rms(x, tensors["input_norm.weight"], eps)
    if config.get("fc_norm"):
        parts = x.split(hidden, dim=-1)
        x = torch.cat([rms(part, tensors[f"fc_norm.{i}.weight"], eps) for i, part in enumerate(parts)], dim=-1)
    x = x @ tensors["fc.weight"].double().T
    return x + tensors["fc.bias"].double() if "fc.bias" in tensors else x


def eagle3_states(tensors: Tensors, config: Config, embedded: Tensor, h: Tensor) -> Tensor:
    """The layer's output after each pair (h_i, t_{i+1}) [n, hidden], without the last norm.

    Attention reads [input_layernorm(e); hidden_norm(h)]; the residual is h as it is (`norm_before_residual`: hidden_norm(h)).
    Pair i is at rotary position i. embedded: e(t_{i+1}) [n, hidden]; h: [n, hidden].
    """
    eps = config["rms_norm_eps"]
    normed = rms(h, tensors["midlayer.hidden_norm.weight"], eps)
    read = torch.cat([rms(embedded, tensors["midlayer.input_layernorm.weight"], eps), normed], dim=-1)
    return layer(tensors, "midlayer", config, read, normed if config.get("norm_before_residual") else h)


def eagle3_logits(
    tensors: Tensors, config: Config, embedding: Tensor, tokens: Sequence[int], states: Tensor, drafted: Sequence[int]
) -> Tensor:  # fmt: skip
    """Logits [draft_vocab_size] after `drafted`, which hangs on the pairs of a text. tokens: t_1 .. t_n; states: of tokens
    0 .. n-1, [n, k * hidden]. Logits are lm_head(norm(output)); what is fed back is the output (`norm_output`: normed).
    Column i is of the target's token i + d2t[i]."""
    ids, h = list(tokens), fused(tensors, config, states)

    def last() -> Tensor:
        return eagle3_states(tensors, config, embedding[ids].double(), h)[-1:]

    for token in drafted:
        out = last()
        h = torch.cat([h, rms(out, tensors["norm.weight"], config["rms_norm_eps"]) if config.get("norm_output") else out])
        ids.append(token)
    return rms(last(), tensors["norm.weight"], config["rms_norm_eps"])[0] @ tensors["lm_head.weight"].double().T
