"""One prompt, decoded plainly and with EAGLE-2: the same text in fewer target forwards.

python examples/decode_one_prompt.py [MODEL]
"""

import sys

import harness

model = harness.load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
prompt = "Why is the sky blue?"

plain = model.generate(prompt, method="vanilla", temperature=0.0)
fast = model.generate(prompt, method="eagle2", temperature=0.0)

print(fast.text)
print(f"{len(fast.token_ids)} tokens, {fast.tau:.2f} a target forward, {len(fast.trees)} trees drafted")
print("the same tokens as plain decoding:", fast.token_ids == plain.token_ids)
