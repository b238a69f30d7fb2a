"""How trees grow: the only place where drafting methods differ.

Counts are draft nodes, root excluded, and levels: the release's `--total-token 60 --depth 5` is total=59, depth=6 here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from methods.base import Drafter
from methods.engine.loop import Context, Grow
from methods.engine.sampling import Chooser, DraftLaws, drawn_children
from methods.engine.transfer import sent
from methods.engine.tree import Tree, ancestors, chain

COLUMN = 64  # entries of the vocabulary in one column of `best_tokens`


def best_tokens(logits: Tensor, k: int) -> Tensor:
    """logits [m, vocab] -> the k best of each row [m, min(k, vocab)], best first: `topk`, a third of its time on a CPU.

    A row laid out as [COLUMN, vocab / COLUMN]: its k best entries stand in the k columns of highest maximum, and the
    maxima of columns are one vectorised pass.
    """
    m, vocab = logits.shape
    width = vocab // COLUMN
    if vocab % COLUMN or k > width or logits.device.type != "cpu":
        return logits.topk(min(k, vocab), dim=-1).indices
    table = logits.view(m, COLUMN, width)
    columns = table.amax(1).topk(k, dim=-1).indices
    found = table.gather(2, columns[:, None].expand(-1, COLUMN, -1)).flatten(1).topk(k, dim=-1).indices
    return found // k * width + columns.gather(1, found % k)


def best_children(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """logits [m, vocab] -> (tokens [m, k], log-probabilities [m, k] float32, <= 0), best first; k = min(top_k, vocab)."""
    tokens = best_tokens(logits, top_k)
    wide = torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype
    logp = logits.log_softmax(-1, dtype=wide).gather(-1, tokens)
    return tokens, logp.float().clamp_(max=0.0)  # rounding must not give a child more value than its parent


BestChildren = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def by_score(scores: Tensor, k: int) -> Tensor:
    """Indices of the k best, ties to the lower index: a bare topk may keep a child and drop its equal parent."""
    return scores.sort(descending=True, stable=True).indices[:k]


@dataclass(frozen=True, slots=True)
class Pool:
    """All nodes of one dynamic draft before reranking, in generation order (level by level): columns [n].

    `tokens`; `parents`: generation numbers, -1 the root; `confidence`, `value`: float32 logs of the node's own probability
    and of the product along its path; `levels`: where each level ends; `expanded`: per level the numbers of the nodes
    picked for expansion. At a fixed top_k the pool of a smaller depth is a prefix of this one.
    """

    tokens: Tensor
    parents: Tensor
    confidence: Tensor
    value: Tensor
    levels: list[int]
    expanded: list[Tensor]


def draft_pool(
    drafter: Drafter, top_k: int, depth: int, score: str = "value", total: int | None = None, rerank: bool = True
) -> Pool:  # fmt: skip
    """Expand the `top_k` best nodes of the newest level `depth - 1` times (EAGLE-2, section 4.1).

    total: stop early, as so many nodes will be kept: what cannot change which ones is not drafted. The paper's code has no such
    stop. rerank: whether the best of all nodes will be kept, or the expanded ones in level order.
    """
    logits = drafter.root_logits()
    here = logits.device
    best: BestChildren = getattr(drafter, "best_children", best_children)
    masks: bool = getattr(drafter, "reads_masks", True)  # else it follows `parents`
    tokens, own = best(logits, top_k)  # [expanded nodes, k]: their children and the children's confidence
    values = bounds = own  # logs of the path product of confidences; what no node below ranks above when the kept are chosen
    expanded = torch.full((1,), -1, device=here)  # generation numbers of the expanded nodes; -1 = the root
    entries = torch.full((1,), -1, device=here)  # their entry numbers in the drafter
    sees = torch.zeros(1, 0, dtype=torch.bool, device=here)  # which entries each of them attends to
    drafted: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    all_bounds: list[Tensor] = []
    frontiers: list[Tensor] = []
    levels, n_entries = [0], 0
    for level in range(1, depth + 1):
        k, level_tokens, level_values = tokens.shape[1], drafter.named(tokens.flatten()), values.flatten()
        drafted.append((level_tokens, expanded.repeat_interleave(k), own.flatten(), level_values))
        all_bounds.append(bounds.flatten())
        picked = by_score(level_values if score == "value" else own.flatten(), top_k)
        frontiers.append(picked + levels[-1])
        levels.append(levels[-1] + len(level_tokens))
        if total is not None and level < depth:
            if rerank:
                picked = _worth_expanding(picked, all_bounds, total, score)
            elif sum(map(len, frontiers)) >= total:
                break
        if level == depth or not len(picked):
            break
        row, m = picked // k, len(picked)  # row: which expanded node each one hangs on
        if masks:
            sees = torch.cat([sees[row], torch.eye(m, dtype=torch.bool, device=here)], dim=1)
        logits = drafter.expand(level_tokens[picked], entries[row], sees)
        expanded, entries = picked + levels[-2], torch.arange(n_entries, n_entries + m, device=here)
        n_entries += m
        tokens, own = best(logits, top_k)
        values = own + level_values[picked, None]
        bounds = values if score == "value" else torch.minimum(own, all_bounds[-1][picked, None])
    all_tokens, parents, confidence, value = (torch.cat(column) for column in zip(*drafted, strict=True))
    return Pool(all_tokens, parents, confidence, value, levels[1:], frontiers)


def _worth_expanding(picked: Tensor, bounds: Sequence[Tensor], total: int, score: str) -> Tensor:
    """Those of the nodes picked in the newest level that may have descendants among the `total` kept of all nodes.

    bounds: of every node so far, level by level: its value; by confidence the least one on its path. They never rise along a
    path, and the nodes of highest bound are kept: best first takes no node while one of a higher bound is left. So nothing is
    kept below a node that is under the `total` highest bounds so far. By value such nodes and all below them rank last, and go.
    By confidence their children may crowd others out of the next level: there all stay, or none where none can matter.
    """
    so_far = torch.cat(list(bounds))
    if len(so_far) <= total:
        return picked
    may_matter = bounds[-1][picked] >= so_far.topk(total).values[-1]
    n = int(may_matter.sum())  # on a GPU a host sync a level: it buys forwards
    return picked[:n] if score == "value" or not n else picked


def dynamic_tree(
    top_k: int = 10, depth: int = 6, total: int = 59, score: str = "value", rerank: bool = True, frequent: int | None = None,
    stop_early: bool = False,
) -> Grow:  # fmt: skip
    """EAGLE-2's tree (arXiv 2406.16858, section 4): `draft_pool`, then keep the `total` best of all nodes.

    score: "value" ranks nodes by the path product of confidences, "confidence" by their own alone (ablation).
    rerank: False keeps the expanded nodes of each level in level order, cut at `total` (ablation).
    frequent: the drafter predicts over this many frequent tokens only (FR-Spec); None is the whole vocabulary.
    stop_early: leave out drafting that cannot change the tree. It is ours, not the paper's. The tree is the same but for
    rounding, as a forward over fewer nodes may round otherwise. On a GPU it takes a host sync a level.
    """
    if min(top_k, depth, total) < 1:
        raise ValueError(f"top_k={top_k}, depth={depth}, total={total}: each must be at least 1")
    if frequent is not None and frequent < 1:
        raise ValueError(f"frequent={frequent}: it must be at least 1")

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        # by its class: whatever wraps a drafter to change what it gives must not be passed by
        given: Any = drafter
        whole: Callable[..., tuple[Pool, Tensor | None]] | None = given.drafted if hasattr(type(given), "drafted") else None
        if whole is not None and not stop_early:  # nothing is read back on the way
            pool, kept = whole((top_k, depth, total, score, rerank), draft)
        else:
            pool, kept = draft(drafter)
        return _best_first_tree(pool, total, context.root) if kept is None else kept_tree(pool, kept, context.root)

    def draft(drafter: Drafter) -> tuple[Pool, Tensor | None]:
        pool = draft_pool(drafter, top_k, depth, score, total if stop_early else None, rerank)
        if not rerank:
            return pool, torch.cat(pool.expanded)[:total]
        return pool, by_score(pool.value, total).sort().values if score == "value" else None

    return Grow(tree, max(total, top_k * depth), frequent)


def kept_tree(pool: Pool, kept: Tensor, root: int) -> Tree:
    """The tree of the pool's nodes `kept` (generation numbers, rising; a node's parent is kept, too)."""
    numbers, tokens, parents = torch.stack([kept, pool.tokens[kept], pool.parents[kept]]).tolist()  # the one host sync
    return _tree_of(pool, numbers, tokens, parents, root)


def _tree_of(pool: Pool, numbers: list[int], tokens: list[int], parents: list[int], root: int) -> Tree:
    place = {-1: 0} | {number: i for i, number in enumerate(numbers, start=1)}

    def confidence() -> list[float]:
        return pool.confidence[sent(numbers, pool.confidence.device)].double().exp().tolist()

    return Tree([root, *tokens], [-1, *(place[p] for p in parents)], confidence=confidence)


def _best_first_tree(pool: Pool, total: int, root: int) -> Tree:
    """The `total` most confident nodes among those whose parent is in; generation order settles ties (shallower first)."""
    columns = torch.stack([pool.tokens.double(), pool.parents.double(), pool.confidence.double()]).tolist()  # the one host sync
    tokens, parents, confidence = list(map(int, columns[0])), list(map(int, columns[1])), columns[2]
    children: dict[int, list[int]] = {}
    for i, p in enumerate(parents):
        children.setdefault(p, []).append(i)
    open_nodes = [(-confidence[i], i) for i in children.get(-1, [])]
    heapq.heapify(open_nodes)
    kept: list[int] = []
    while open_nodes and len(kept) < total:
        _, i = heapq.heappop(open_nodes)
        kept.append(i)
        for c in children.get(i, []):
            heapq.heappush(open_nodes, (-confidence[c], c))
    kept.sort()
    return _tree_of(pool, kept, [tokens[i] for i in kept], [parents[i] for i in kept], root)


def paths_of(words: str, option: str = "shape") -> list[tuple[int, ...]]:
    """`"0 1 00"` -> [(0,), (1,), (0, 0)]: each word a node, the ranks of its ancestors and its own among their siblings.

    Raises:
        ValueError: something else than words of digits.
    """
    if not words.replace(" ", "").isdecimal():
        raise ValueError(f"{option}={words!r}: expected words of digits, one a node, such as '0 1 00 01'")
    return [tuple(map(int, word)) for word in words.split()]


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of a static tree: `rows`, `ranks` [n]: which node of those expanded before each hangs on, and as its which best
    child. `expanded` [m]: those that have children, None at the last level; `above` [m]: the drafter's entry that each of them
    hangs on; `sees` [m, entries]: those that it attends to, itself among them. `n_above`: nodes expanded before; `most`: children
    that any of them has."""

    rows: Tensor
    ranks: Tensor
    expanded: Tensor | None
    above: Tensor
    sees: Tensor
    n_above: int
    most: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """A static tree as tensors on a device. `parents`: of the whole tree, as `Tree` has them. `entries`: the numbers of those
    nodes that the drafter runs, in order; `above`: the entry that each of them hangs on."""

    levels: list[_Level]
    parents: list[int]
    entries: list[int]
    above: list[int]

    @classmethod
    def of(cls, ordered: Sequence[tuple[int, ...]], device: torch.device) -> _Layout:
        """ordered: paths, shorter ones first."""
        place: dict[tuple[int, ...], int] = {(): 0} | {path: i for i, path in enumerate(ordered, start=1)}
        with_children = {path[:-1] for path in ordered}
        levels: list[_Level] = []
        above: list[int] = []
        before: list[tuple[int, ...]] = [()]
        entry: dict[tuple[int, ...], int] = {(): -1}
        for depth in range(1, max(map(len, ordered), default=0) + 1):
            paths = [path for path in ordered if len(path) == depth]
            now = [path for path in paths if path in with_children]
            n = len(above)
            entry |= {path: n + i for i, path in enumerate(now)}
            above += [entry[path[:-1]] for path in now]
            rows, ranks = (torch.tensor(column, device=device) for column in
                           ([before.index(path[:-1]) for path in paths], [path[-1] for path in paths]))  # fmt: skip
            expanded = torch.tensor([paths.index(path) for path in now], device=device) if now else None
            most = 1 + max(path[-1] for path in paths)
            levels.append(_Level(rows, ranks, expanded, torch.tensor(above[n:]), ancestors(above)[n:], len(before), most))
            before = now
        return cls(levels, [-1, *(place[path[:-1]] for path in ordered)], [place[path] for path in entry if path], above)


def static_tree(paths: Sequence[tuple[int, ...]], ranks: int = 10, sampled: bool = True) -> Grow:
    """A tree of fixed shape (EAGLE-1, Medusa): path (2, 0) is the best child of the third-best child of the root.

    sampled: at T > 0 children are sampled without replacement from the drafter's processed distribution (temperature and top-p
    applied), "rank" being the order of draw; `Tree.q` then holds those distributions. Otherwise they are the likeliest at any
    temperature. `ranks`: candidates a node offers.
    """
    ordered = sorted(set(paths), key=lambda p: (len(p), p))
    index = {path: i for i, path in enumerate(ordered)}
    for path in ordered:
        better = (*path[:-1], path[-1] - 1)  # sampled siblings are tried in the order of draw: none may be left out
        if (path[:-1] and path[:-1] not in index) or (path[-1] and better not in index) or path[-1] >= ranks:
            raise ValueError(f"path {path} hangs on nothing, lacks a better sibling, or its rank is not under {ranks}")
    depth = max(map(len, ordered))
    n_children = Counter(path[:-1] for path in ordered)
    n_of_inner = [n_children[path] for path in [(), *ordered] if path in n_children]

    @cache  # of a vocabulary with fewer tokens than `ranks`, nodes of the ranks that are lacking are left out
    def layout(n_ranks: int, device: torch.device) -> _Layout:
        return _Layout.of([path for path in ordered if max(path) < n_ranks], device)

    def best_tree(drafter: Drafter, context: Context) -> Tree:
        choose: BestChildren | None = getattr(drafter, "best_children", None)
        levels: list[tuple[Tensor, Callable[[], Tensor]]] = []  # tokens, and what gives the logs of their confidence

        def chosen_of(logits: Tensor) -> tuple[Tensor, Tensor | None]:
            return (best_tokens(logits, ranks), None) if choose is None else choose(logits, ranks)

        logits = drafter.root_logits()
        chosen, logs = chosen_of(logits)
        shape = layout(chosen.shape[1], chosen.device)
        for level in shape.levels:
            rows = level.rows if len(chosen) > 1 else torch.zeros_like(level.rows)  # a head's one row serves its whole level
            tokens = chosen[rows, level.ranks]
            kept = (logits if context.keeps_trees and logs is None else logits[:0], logs, rows, level.ranks)
            levels.append((tokens, partial(_logs_of, tokens, *kept)))
            if level.expanded is not None:
                logits = drafter.expand(tokens[level.expanded], level.above, level.sees)
                chosen, logs = chosen_of(logits)
        ids: list[int] = torch.cat([tokens for tokens, _ in levels]).tolist()  # the one host sync
        tell(drafter, shape, ids)

        def confidence() -> list[float]:
            return [c for _, own in levels for c in own().double().exp().tolist()]

        return Tree([context.root, *ids], shape.parents, confidence=confidence if context.keeps_trees else None)

    def tell(drafter: Drafter, shape: _Layout, ids: list[int]) -> None:
        """A drafter that must know what its entries are need not read them back once more."""
        if remember := getattr(drafter, "remember", None):
            remember([ids[node - 1] for node in shape.entries], shape.above)

    def drawn_at_once(drafter: Drafter, context: Context) -> Tree:
        """`drawn_one_by_one` with the children of a level drawn together, and nothing read back before the draft is whole.

        Where a law has fewer tokens than a node has children, those that are lacking are -1, and left out with all below them.
        """
        chooser, draw = context.chooser, getattr(drafter, "drawn_children", drawn_children)
        logits = drafter.root_logits()
        shape = layout(ranks, logits.device)
        numbers = [0, *shape.entries]  # of the nodes with children
        u = sent(chooser.uniforms_of_children(context.position, numbers, n_of_inner), logits.device)
        levels: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens; for their confidence each one's row of these logits
        laws: list[tuple[Any, int]] = []  # of each node with children: the laws of its level, and its row
        for level in shape.levels:
            m = level.n_above
            logits = logits.expand(m, -1)  # a head's one row serves its whole level
            tokens, law = draw(logits, u[len(laws) : len(laws) + m, : level.most], chooser.params)
            laws += [(law, row) for row in range(m)]
            levels.append((tokens[level.rows, level.ranks], level.rows, logits if context.keeps_trees else logits[:0]))
            if level.expanded is not None:
                logits = drafter.expand(levels[-1][0][level.expanded].clamp_min(0), level.above, level.sees)
        ids: list[int] = torch.cat([tokens for tokens, _, _ in levels]).tolist()  # the one host sync
        tell(drafter, shape, [max(token, 0) for token in ids])
        place, tokens_kept, parents = [0], [context.root], [-1]
        for token, above in zip(ids, shape.parents[1:], strict=True):
            there = token >= 0 and place[above] >= 0
            place.append(len(tokens_kept) if there else -1)
            if there:
                tokens_kept.append(token)
                parents.append(place[above])

        def confidence() -> list[float]:
            own = (rows.double().softmax(-1)[at, tokens.clamp_min(0)].tolist() for tokens, at, rows in levels)
            return [c for c, at in zip((c for level in own for c in level), place[1:], strict=True) if at >= 0]

        with_children = set(parents[1:])
        q = {place[node]: law for node, law in zip(numbers, laws, strict=True) if place[node] in with_children}
        return Tree(tokens_kept, parents, DraftLaws(q), confidence if context.keeps_trees else None)

    def drawn_one_by_one(drafter: Drafter, context: Context) -> Tree:
        """A chooser of another kind is asked for each node's children, and may look at what was drawn before."""
        token_of: dict[tuple[int, ...], int] = {}
        offers: dict[tuple[int, ...], list[int]] = {}
        entry: dict[tuple[int, ...], int] = {}
        laws: dict[tuple[int, ...], Tensor] = {}
        rows: dict[tuple[int, ...], Tensor] = {}

        def offer(parents: list[tuple[int, ...]], logits: Tensor) -> None:
            if context.keeps_trees:  # else a level's logits are let go at once
                rows.update(zip(parents, logits.expand(len(parents), -1), strict=True))
            of_level = context.chooser.draft_law(logits)
            for row, path in enumerate(parents):
                laws[path] = of_level[row]
                node = index[path] + 1 if path else 0
                offers[path] = context.chooser.children(laws[path], n_children[path], context.position, node)

        offer([()], drafter.root_logits())
        above: list[int] = []  # of each of the drafter's entries the one it hangs on
        for level in range(1, depth + 1):
            for path in (p for p in ordered if len(p) == level):
                if path[:-1] in offers and path[-1] < len(offers[path[:-1]]):
                    token_of[path] = offers[path[:-1]][path[-1]]
            live = [p for p in ordered if len(p) == level and n_children[p] and p in token_of]
            if not live:
                break
            n = len(above)
            above += [entry.get(p[:-1], -1) for p in live]
            entry.update((p, n + i) for i, p in enumerate(live))
            tokens = torch.tensor([token_of[p] for p in live])
            offer(live, drafter.expand(tokens, torch.tensor(above[n:]), ancestors(above)[n:]))
        kept = [p for p in ordered if p in token_of]
        place = {(): 0} | {p: i for i, p in enumerate(kept, start=1)}

        def confidence() -> list[float]:
            own = torch.stack([rows[p[:-1]] for p in kept]).double().softmax(-1)
            return own.gather(-1, torch.tensor([[token_of[p]] for p in kept], device=own.device)).flatten().tolist()

        return Tree(
            [context.root, *(token_of[p] for p in kept)], [-1, *(place[p[:-1]] for p in kept)],
            {place[p[:-1]]: laws[p[:-1]] for p in kept}, confidence if context.keeps_trees else None,
        )  # fmt: skip

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        if not sampled or context.chooser.greedy:
            return best_tree(drafter, context)
        return (drawn_at_once if type(context.chooser) is Chooser else drawn_one_by_one)(drafter, context)

    return Grow(tree, len(ordered))


def _logs_of(tokens: Tensor, logits: Tensor, logs: Tensor | None, rows: Tensor, ranks: Tensor) -> Tensor:
    """Log-probabilities of nodes: each is child `ranks` of row `rows`."""
    return logs[rows, ranks] if logs is not None else logits.double().log_softmax(-1)[rows, tokens]


def sampled_chain(gamma: int) -> Grow:
    """`gamma` tokens, each drawn from the drafter's processed distribution after the one before; its argmax at T = 0."""
    if gamma < 1:
        raise ValueError(f"gamma={gamma}: it must be at least 1")
    return static_tree([(0,) * n for n in range(1, gamma + 1)], ranks=1)


def best_shape(accuracies: Sequence[Sequence[float]], total: int) -> list[tuple[int, ...]]:
    """The shape of `total` nodes that should have most of them accepted (Medusa, arXiv 2401.10774, section 2.3.3).

    accuracies [levels][ranks]: how often the head of a level is right with its candidate of a rank. The product along a path
    estimates how often the path is; the best node whose parent and better siblings are in is added, one after the other.
    """
    products: dict[tuple[int, ...], float] = {(): 1.0}  # of kept paths
    open_nodes: list[tuple[float, tuple[int, ...]]] = []

    def offer(path: tuple[int, ...]) -> None:
        if len(path) <= len(accuracies) and path[-1] < len(accuracies[len(path) - 1]):
            heapq.heappush(open_nodes, (-products[path[:-1]] * accuracies[len(path) - 1][path[-1]], path))

    offer((0,))
    kept: list[tuple[int, ...]] = []
    while open_nodes and len(kept) < total:
        value, path = heapq.heappop(open_nodes)
        products[path] = -value
        kept.append(path)
        offer((*path[:-1], path[-1] + 1))
        offer((*path, 0))
    return kept


def accuracies_of(drafter: Drafter | None) -> tuple[tuple[float, ...], ...]:
    """A drafter's own held-out accuracies [levels][ranks].

    Raises:
        ValueError: it has none.
    """
    found: tuple[tuple[float, ...], ...] = getattr(drafter, "accuracies", ())
    if not found:
        raise ValueError("tree=chosen needs heads with held-out accuracies in their config.json; name a tree instead")
    return found


def chosen_tree(total: int) -> Grow:
    """A static tree of the likeliest tokens whose shape is `best_shape` of the drafter's own held-out accuracies."""
    if total < 1:
        raise ValueError(f"total={total}: it must be at least 1")

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        return _chosen(accuracies_of(drafter), total).tree(drafter, context)

    return Grow(tree, total)


@cache  # a builder is called for each generation, and a shape takes longer than a step
def _chosen(accuracies: tuple[tuple[float, ...], ...], total: int) -> Grow:
    return static_tree(best_shape(accuracies, total), ranks=len(accuracies[0]), sampled=False)


def prompt_lookup(max_ngram: int = 3, n_draft: int = 10) -> Grow:
    """A chain copied from the last earlier occurrence of the longest matching n-gram at the end of the text; no model.

    After prompt lookup decoding (Saxena 2023), which takes the first occurrence; the last one drafts better in long outputs.
    """
    if min(max_ngram, n_draft) < 1:
        raise ValueError(f"max_ngram={max_ngram}, n_draft={n_draft}: each must be at least 1")

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        tokens = context.tokens
        for n in range(min(max_ngram, len(tokens) - 1), 0, -1):
            gram = tokens[-n:]
            for start in range(len(tokens) - n - 1, -1, -1):
                if tokens[start] == gram[0] and tokens[start : start + n] == gram:
                    return chain(context.root, tokens[start + n : start + n + n_draft])
        return chain(context.root, [])

    return Grow(tree, n_draft)
