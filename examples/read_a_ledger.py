"""Numbers of one's own from the records of a ledger.

python examples/read_a_ledger.py [DIR]
"""

import sys

import harness

folder = sys.argv[1] if len(sys.argv) > 1 else "results/smollm2-135m-claims"

cells = harness.summarise(folder)  # one row a method, task and setting, with intervals
print(cells[["method", "task", "temperature", "prompts", "tau", "tau_low", "tau_high", "speedup"]].to_string(index=False))

records = harness.read(folder)  # one row a generation, as measured
records = records[(records["status"] == "ok") & ~records["is_warmup"]]
print(records.groupby(["method", "temperature"])["wall_s"].sum().round(1).to_string())
