"""Adjacency-adaptive trees: depth and width by hand on made-up rounds, for each adjacency and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tiny_model import STOP_IDS, shared_tiny_model

import methods
from methods.base import SamplerParams
from methods.engine.loop import speculative
from methods.engine.policy import Fixed, Here, Round, policy_tree
from methods.policies.adt import ADJACENCY, OF_PICTURES, STEPS, Adjacent

PROMPT = 5  # tokens, one before the first pixel: a row of four is given


def played(accepted: Sequence[int], adjacency: str, step: str = "one", u: float = 0.0, **changes: Any) -> list[tuple[int, int]]:
    """The (depth, width) of each round and of the one after, of a policy that is told what rounds accepted."""
    made = {"beta": 0.5, "first": (4, 4), "least": (1, 1), "most": (9, 8), "total": 60, "row": 4, "offset": 1} | changes
    policy = Adjacent(adjacency, step, **made)
    shapes: list[tuple[int, int]] = []
    at, last = 1, None
    for n in [*accepted, None]:
        width = policy.begin(Here(at, PROMPT + at, lambda i: u), last)
        shapes.append((policy._depth, policy._width))
        assert width == policy._width
        if n is not None:
            assert n <= policy._depth  # else the made-up round could not be
            last = Round(accepted=n, size=9, calls=policy._depth, deepest=policy._depth, position=at)
            at += n + 1
    return shapes


# Pixels 0 to 3 are given and 4 is the prefill's, at output position 0: position p is pixel 4 + p, in column p % 4.
def test_the_previous_round_moves_the_tree_one_step_up_or_down() -> None:
    # 2 of 4 accepted: deeper and narrower; 1 of 5: shallower and wider; 0 of 4
    assert played([2, 1, 0], "previous-round") == [(4, 4), (5, 3), (4, 4), (3, 5)]


def test_bisection_goes_half_way_to_the_bound_and_reaches_it() -> None:
    # up: 4, +3, +1, +1 of 9; down by 2, 1, 0 of 1: widths the other way
    assert played([4, 7, 8, 9], "previous-round", "bisection") == [(4, 4), (7, 2), (8, 1), (9, 1), (9, 1)]
    assert played([0, 0, 0, 0], "previous-round", "bisection") == [(4, 4), (2, 6), (1, 7), (1, 8), (1, 8)]


def test_a_step_ends_at_the_bounds() -> None:
    up, down = {"first": (4, 2), "most": (5, 4)}, {"first": (2, 4), "most": (5, 5)}
    assert played([4, 5, 5], "previous-round", **up) == [(4, 2), (5, 1), (5, 1), (5, 1)]
    assert played([0, 0, 0], "previous-round", **down) == [(2, 4), (1, 5), (1, 5), (1, 5)]
    outside = {"first": (6, 1), "least": (2, 3), "most": (4, 5)}
    assert played([6, 0, 0], "previous-round", **outside) == [(6, 1), (5, 2), (4, 3), (3, 4)]  # a first tree outside is led in
    for step in STEPS:
        fixed = played([0, 4, 0, 4], "previous-round", step, least=(4, 4), most=(4, 4))
        assert fixed == [(4, 4)] * 5


def test_beta_is_the_rate_from_which_a_tree_goes_deeper() -> None:
    assert played([3], "previous-round", beta=0.75)[1] == (5, 3)
    assert played([2], "previous-round", beta=0.75)[1] == (3, 5)


def test_left_is_the_previous_round_but_in_the_first_column() -> None:
    # positions 1, 4 (column 0), 5: the second round begins a row and has no left
    assert played([2, 0, 0], "left") == [(4, 4), (4, 4), (3, 5), (2, 6)]
    assert played([2, 0, 0], "previous-round") == [(4, 4), (5, 3), (4, 4), (3, 5)]


def test_above_is_the_tree_of_the_round_that_made_the_pixel_above() -> None:
    # rounds at 1-3, 4, 5-6, 7, 8: 1 to 4 stand under the prompt and the prefill's token, which no tree drafted
    shapes = played([2, 0, 1, 0], "above")
    assert shapes[:2] == [(4, 4), (4, 4)]
    assert shapes[2] == (5, 3)  # 5 is under 1, of the first round: 2 of 4
    assert shapes[3] == (5, 3)  # 7 is under 3, the target's own token at the end of the first round
    assert shapes[4] == (3, 5)  # 8 is under 4: 0 of 4


def test_diagonal_is_left_of_above_and_lacks_the_first_column() -> None:
    shapes = played([2, 0, 1, 0], "diagonal")
    assert shapes[2] == (4, 4)  # 5 has 0 up left, the prefill's
    assert shapes[3] == (5, 3)  # 7 has 2
    assert shapes[4] == (4, 4)  # 8 begins a row


def test_both_are_the_mean_of_left_and_above_or_the_one_that_is_there() -> None:
    shapes = played([2, 0, 1, 0], "both")
    assert shapes[:2] == [(4, 4), (4, 4)]  # at 1 neither was drafted; 4 begins a row, under the prefill's token
    # 5: left 0 of 4, above 2 of 4, a mean rate of 0.25; depth and width 4 both
    assert shapes[2] == (3, 5)
    # 7: left 1 of 3 in a tree of 3 and 5, above 2 of 4 in one of 4 and 4: 0.42, and (3.5, 4.5) is rounded to even
    assert shapes[3] == (3, 5)
    assert shapes[4] == (3, 5)  # 8: no left; above is 4's, 0 of 4


def test_random_is_any_place_of_the_output_by_the_policys_own_number() -> None:
    accepted = [2, 0, 0]
    assert played(accepted, "random", u=0.0)[1:] == [(5, 3)] * 3  # always output position 1
    assert played(accepted, "random", u=0.999) == played(accepted, "previous-round")


def test_none_takes_nothing_from_anywhere() -> None:
    for step in STEPS:
        assert played([4, 0, 4, 0], "none", step) == [(4, 4)] * 5


@pytest.mark.parametrize("adjacency", OF_PICTURES)
def test_before_the_first_pixel_and_in_the_first_row_there_is_nothing_above(adjacency: str) -> None:
    """A picture that begins in the output: 6 tokens of text come first. Its first row may have a left, and nothing else."""
    shapes = played([1, 1, 0, 0], adjacency, offset=PROMPT + 6, row=2)  # rounds at 1, 3, 5, 6 and 7; pixels from 6 on
    assert shapes[:4] == [(4, 4)] * 4
    assert shapes[4] == ((3, 5) if adjacency in ("left", "both") else (4, 4))  # pixel 1: its left is the first pixel


def test_more_nodes_than_total_are_never_verified_and_no_tree_is_larger_than_depth_times_width() -> None:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(24, STOP_IDS, keep_trees=True)
    sizes = set()
    for total in (7, 59):
        made = methods.get("adt").build(top_k=4, most_top_k=4, depth=3, most_depth=6, total=total, beta=0.3)
        trace = made(tiny.prompts[0], tiny.loaded.target, tiny.loaded.drafter, params).trace
        for tree in trace.trees:
            assert len(tree.tokens) <= total
        sizes |= {len(tree.tokens) for tree in trace.trees}
        assert trace.tree_size[0] == min(12, total)
    assert len(sizes) > 2  # it adapts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_neighbours_or_between_equal_bounds_it_is_eagle2s_tree(temperature: float) -> None:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(24, STOP_IDS, temperature=temperature, key=3, keep_trees=True)
    target, drafter = tiny.loaded.target, tiny.loaded.drafter
    live = methods.get("eagle2").build()(tiny.prompts[0], target, drafter, params)
    bound = {"least_top_k": 10, "most_top_k": 10, "least_depth": 6, "most_depth": 6}
    for options in ({"adjacency": "none"}, bound, {**bound, "adjacency": "above", "row": 4, "step": "one"}):
        made = methods.get("adt").build(**options)(tiny.prompts[0], target, drafter, params)
        assert made.token_ids == live.token_ids
        assert [(t.tokens, t.parents, t.path) for t in made.trace.trees] == [
            (t.tokens, t.parents, t.path) for t in live.trace.trees
        ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("adjacency", ADJACENCY)
def test_its_answers_are_vanillas(adjacency: str, temperature: float) -> None:
    """Token by token: whatever the tree, the target's tokens are drawn with the same numbers."""
    tiny = shared_tiny_model("float32")
    params = SamplerParams(24, STOP_IDS, temperature=temperature, key=5)
    for step in STEPS:
        decode = methods.get("adt").build(adjacency=adjacency, step=step, row=4, offset=1, beta=0.3)
        for prompt in tiny.prompts[:2]:
            made = decode(prompt, tiny.loaded.target, tiny.loaded.drafter, params)
            assert made.token_ids == tiny.vanilla(prompt, params).token_ids


def test_random_draws_from_a_stream_of_its_own_and_repeats_itself() -> None:
    tiny = shared_tiny_model("float32")

    def drawn(key: int) -> tuple[list[int], list[int]]:
        params = SamplerParams(24, STOP_IDS, key=key)  # at T = 0 the key is the policy's alone
        decode = methods.get("adt").build(adjacency="random", beta=0.3)
        made = decode(tiny.prompts[0], tiny.loaded.target, tiny.loaded.drafter, params)
        return made.token_ids, made.trace.tree_size

    assert drawn(1) == drawn(1)
    tokens, sizes = zip(*(drawn(key) for key in range(4)), strict=True)
    assert len({tuple(t) for t in tokens}) == 1 and len({tuple(s) for s in sizes}) > 1
    # each round asks for one number, and the target's draws are none of it
    asked: list[tuple[int, int]] = []

    class Draws(Fixed):
        def begin(self, here: Here, last: Round | None) -> int:
            policy = Adjacent("random", "one", 0.5, (2, 2), (1, 1), (3, 3), 9)
            policy._places(Here(here.position, here.length, lambda i: asked.append((here.position, i)) or here.random(i)))
            return Fixed.begin(self, here, last)

    params = SamplerParams(24, STOP_IDS, temperature=1.0, key=9)
    made = speculative(policy_tree(lambda: Draws(4, 3, 8), 100))(tiny.prompts[0], tiny.loaded.target, tiny.loaded.drafter, params)
    assert {i for _, i in asked} == {0} and made.token_ids == tiny.vanilla(tiny.prompts[0], params).token_ids


def test_what_it_cannot_be_is_one_line_that_says_so() -> None:
    for options, words in (
        ({"adjacency": "below"}, "adjacency='below': expected one of left, above"),
        ({"step": "two"}, "step='two': expected one of bisection, one"),
        ({"adjacency": "above"}, "adjacency=above row=0: it is of pictures"),
        ({"least_top_k": 11}, "least_top_k=11, most_top_k=10"),
        ({"least_depth": 0}, "least_depth=0, most_depth=10: bounds from 1"),
        ({"top_k": 0}, "top_k=0, depth=6"),
        ({"beta": 1.5}, "beta=1.5"),
        ({"total": 0}, "total=0"),
        ({"offset": -1}, "offset=-1"),
    ):
        with pytest.raises(ValueError, match=words):
            methods.get("adt").build(**options)


def test_its_defaults_are_for_text_and_a_preset_for_pictures() -> None:
    m = methods.get("adt")
    assert m.group == "policies" and m.exact and not m.replay_only
    assert m.options["adjacency"] == "previous-round" and m.options["row"] == 0
    image = m.resolve("image", {}, {})
    assert (image["adjacency"], image["row"], image["offset"]) == ("above", 32, 1)
    for options in (*m.candidates, *m.small):
        m.build(**(dict(m.options) | dict(options)))
