"""One prompt, decoded plainly and with EAGLE-2: the same text in fewer target forwards.

python examples/decode_one_prompt.py [MODEL]
"""

import sys

import harness


def main(name: str = "smollm2-135m") -> None:
    model = harness.load_model(name)
    prompt = "Why is the sky blue?"

    plain = model.generate(prompt, method="vanilla", temperature=0.0)
    fast = model.generate(prompt, method="eagle2", temperature=0.0)

    print(fast.text)
    print(f"{len(fast.token_ids)} tokens, {fast.tau:.2f} a target forward, {len(fast.trees)} trees drafted")
    print("the same tokens as plain decoding:", fast.token_ids == plain.token_ids)


if __name__ == "__main__":  # `--include examples` reads this file, too
    main(*sys.argv[1:])
