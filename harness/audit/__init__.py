"""Losslessness audited in five layers: exact law, logit replay, greedy equality, sampling statistics, mutation.

`law` (1) and `replay` (2-4) run methods and need torch; `scores` and `verdicts` judge what they recorded, from numbers alone;
`mutants` (5) plants faults and asks which layer notices.
"""
