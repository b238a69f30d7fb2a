"""A decoding method of your own: draft the words that followed the last token when it stood in the text before.

harness run --include examples/my_method.py --method last-seen --task gsm8k --limit 2
harness verify --include examples/my_method.py --method last-seen
"""

from methods import method
from methods.base import Decode, Drafter
from methods.engine.loop import Context, Grow, speculative
from methods.engine.tree import Tree, chain


@method("last-seen", line="copies what followed the last token before", small={"length": 3})
def last_seen(length: int = 4) -> Decode:
    def draft(drafter: Drafter | None, context: Context) -> Tree:
        *earlier, last = context.tokens
        places = [i for i, token in enumerate(earlier) if token == last]
        start = places[-1] + 1 if places else len(context.tokens)
        return chain(last, context.tokens[start : start + length])

    return speculative(Grow(draft, most=length))  # verified by `walk`, which is exact for every draft
