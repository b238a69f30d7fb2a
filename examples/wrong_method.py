"""A method that calls itself exact and is not: it accepts every draft among the target's `top` likeliest tokens.

The audit catches it and exits with status 2:

harness verify --include examples/wrong_method.py --method wrong
"""

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.grow import prompt_lookup
from methods.engine.loop import speculative
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted


@method("wrong", line="prompt lookup that accepts too much", small={"n_draft": 3, "top": 2})
def wrong(n_draft: int = 4, top: int = 5) -> Decode:
    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:  # logits: [n_nodes, vocab]
        path = [0]
        for node in range(1, len(tree)):  # a chain: every node is the child of the one before
            if tree.tokens[node] not in logits[path[-1]].topk(top).indices:
                break
            path.append(node)  # wrong: the target would often have taken another token
        return Accepted(path, bonus=chooser.token(logits[path[-1]], position + len(path) - 1))

    return speculative(prompt_lookup(n_draft=n_draft), verify)
