"""Which drafts the target accepts. `walk` and `rejection` keep the target's distribution; they differ in what they ask of drafts.

`walk` is exact for any proposals: draw the target's own token at the node reached and descend while it is a child.
`rejection` (Leviathan et al. 2023; without replacement over siblings as in EAGLE, arXiv 2401.15077 and SpecInfer) is
for drafts that were themselves sampled, and accepts more of them: accept child x with min(1, p(x)/q(x)), else take the
residual max(p - q, 0) for the target and strike x from q. Exact only with the q the drafts were really drawn from.
`typical` (Medusa) does not keep it and is there to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.engine.sampling import Chooser, inverse_cdfs
from methods.engine.transfer import at_once, sent
from methods.engine.tree import Tree


@dataclass(frozen=True, slots=True)
class Accepted:
    """`path`: nodes from the root down (root included); `bonus`: the target's own next token after the last of them."""

    path: list[int]
    bonus: int


Verify = Callable[[Tree, Tensor, Chooser, int], Accepted]
"""(tree, logits [n, vocab], chooser, output position of the root's successor) -> Accepted."""


def walk(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    """Draw at the node reached, descend while the token is a child; the last draw is the bonus (T = 0: argmax)."""
    by_parent: dict[tuple[int, int], int] = {}
    for node in range(len(tree) - 1, 0, -1):  # from the back, so that the first of equal siblings stays
        by_parent[tree.parents[node], tree.tokens[node]] = node
    drawn = chooser.tokens(logits, [position + d for d in tree.depths()]) if _all_at_once(logits, chooser) else None
    path = [0]
    while True:
        token = drawn[path[-1]] if drawn else chooser.token(logits[path[-1]], position + len(path) - 1)
        child = by_parent.get((path[-1], token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def rejection(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    """p/q acceptance over sampled siblings with residual resampling; at T = 0 drafts are not sampled and `walk` serves."""
    if chooser.greedy or tree.q is None:
        return walk(tree, logits, chooser, position)
    children = tree.children()
    if _all_at_once(logits, chooser):
        return _rejection_at_once(tree, children, logits, chooser, position)
    path = [0]
    while True:
        at = position + len(path) - 1
        p, of_p = chooser.law(logits[path[-1]]), 1.0  # what is left of p, and its sum: it is not normalised
        if path[-1] not in tree.q:
            return Accepted(path, chooser.draw(p, at))
        q, of_q, siblings = tree.q[path[-1]], 1.0, children[path[-1]]
        for attempt, child in enumerate(siblings):
            token = tree.tokens[child]
            mass_p, mass_q = float(p[token]) / of_p, float(q[token]) / of_q
            if mass_q > 0 and chooser.accept(min(1.0, mass_p / mass_q), at, attempt):
                path.append(child)
                break
            residual = torch.sub(p, q, alpha=of_p / of_q).clamp_(min=0)
            mass = float(residual.sum())
            if mass > 0:  # zero only where p == q up to rounding: a rejection of probability zero
                p, of_p = residual, mass
            if child == siblings[-1]:
                continue  # nothing else was drawn from q
            if attempt == 0:
                q = q.clone()  # the tree's own stays whole
            q[token] = 0
            of_q = float(q.sum())
            if of_q <= 0:
                return Accepted(path, chooser.draw(p, at))
        else:
            return Accepted(path, chooser.draw(p, at))


def _all_at_once(logits: Tensor, chooser: Chooser) -> bool:
    """Whether every node's draw is made on the device and read back once. A chooser of another kind is asked draw by draw."""
    return at_once(logits.device) and type(chooser) is Chooser


def _rejection_at_once(
    tree: Tree, children: list[list[int]], logits: Tensor, chooser: Chooser, position: int
) -> Accepted:  # fmt: skip
    """`rejection` with every node's ratios and draws made on the device, all nodes side by side, and read back once.

    [m, vocab] are p and q of the m nodes with children. Attempt r is with each one's r-th child, where it has one.
    """
    assert tree.q is not None
    inner, here = [node for node in tree.q if children[node]], logits.device
    laws = chooser.law(logits)
    p, q = laws[sent(inner, here)], torch.stack([tree.q[node] for node in inner]).to(here)
    ratios = []
    for r in range(max(len(children[node]) for node in inner)):
        has = [len(children[node]) > r for node in inner]
        token = sent([[tree.tokens[children[node][r]] if h else 0] for node, h in zip(inner, has, strict=True)], here)
        tried, own = sent(has, here)[:, None], q.gather(-1, token)
        ratios.append(torch.where(own > 0, p.gather(-1, token) / own, 0.0))
        residual = (p - q).clamp_(min=0)
        mass = residual.sum(-1, keepdim=True)
        p = torch.where(tried & (mass > 0), residual / mass, p)
        struck = q.scatter(-1, token, 0.0)
        left = struck.sum(-1, keepdim=True)
        q = torch.where(tried, torch.where(left > 0, struck / left, struck), q)
    laws[sent(inner, here)] = p  # what is drawn from where no child is taken
    u = [chooser.uniform_of_token(position + depth) for depth in tree.depths()]
    drawn = inverse_cdfs(laws, sent(torch.tensor(u, dtype=torch.float64), here))
    numbers: list[float] = torch.cat([*(ratio[:, 0] for ratio in ratios), drawn.double()]).tolist()  # the one host sync
    row, m = {node: i for i, node in enumerate(inner)}, len(inner)
    path = [0]
    while True:
        node, at = path[-1], position + len(path) - 1
        tries = enumerate(children[node]) if node in row else ()
        ratio_of = [numbers[r * m + row[node]] for r, _ in enumerate(children[node])] if node in row else []
        taken = next((c for r, c in tries if ratio_of[r] > 0 and chooser.accept(min(1.0, ratio_of[r]), at, r)), None)
        if taken is None:
            return Accepted(path, int(numbers[len(ratios) * m + node]))
        path.append(taken)


def typical(epsilon: float, delta: float) -> Verify:
    """Medusa's typical acceptance (arXiv 2401.10774, section 2.3.1): NOT the target's law at T > 0.

    A child x is accepted where p(x) > min(epsilon, delta exp(-H(p))), p the processed law after its parent and H its entropy
    in nats. The deepest accepted path is taken, the likelier one on ties, and the bonus is drawn after it. At T = 0 `walk`.
    """

    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
        if chooser.greedy:
            return walk(tree, logits, chooser, position)
        children, depths = tree.children(), tree.depths()
        entropies: list[float] = []  # of all nodes, where all are asked for at once; so are the next two
        masses: list[float] = []
        drawn: list[float] = []
        if _all_at_once(logits, chooser):
            laws, here = chooser.law(logits), logits.device
            u = torch.tensor([chooser.uniform_of_token(position + depth) for depth in depths], dtype=torch.float64)
            mass = laws[sent(tree.parents, here).clamp_min(0), sent(tree.tokens, here)]
            columns = torch.stack([_entropy(laws), mass, inverse_cdfs(laws, sent(u, here)).double()])
            entropies, masses, drawn = columns.tolist()  # the one host sync
        likelihood = {0: 0.0}  # accepted nodes: log p of their path
        for node in range(len(tree)):  # parents come before their children
            if node not in likelihood or not children[node]:
                continue
            p = None if entropies else chooser.law(logits[node])
            least = min(epsilon, delta * math.exp(-(entropies[node] if p is None else float(_entropy(p)))))
            for child in children[node]:
                mass_of_child = masses[child] if p is None else float(p[tree.tokens[child]])
                if mass_of_child > least:
                    likelihood[child] = likelihood[node] + math.log(mass_of_child)
        best = max(likelihood, key=lambda node: (depths[node], likelihood[node], -node))
        path = [best]
        while path[0]:
            path.insert(0, tree.parents[path[0]])
        return Accepted(path, int(drawn[best]) if drawn else chooser.token(logits[best], position + len(path) - 1))

    return verify


def _entropy(p: Tensor) -> Tensor:
    """In nats: p [.., vocab] -> [..]."""
    return -(p * p.clamp_min(1e-300).log()).sum(-1)
