"""Numbers of one's own from the records of a ledger.

python examples/read_a_ledger.py [DIR]
"""

import sys

import harness


def main(folder: str = "results/smollm2-135m-claims") -> None:
    records = harness.read(folder)  # one row a generation, as measured
    ended = records.groupby(["method", "temperature", "finish"], observed=True).size()
    print(ended.unstack(fill_value=0).to_string())

    cells = harness.summarise(records)  # one row a method, task and setting, with intervals
    columns = ["method", "preset", "task", "temperature", "prompts", "tau", "tau_low", "tau_high", "speedup"]
    print(cells[columns].to_string(index=False))


if __name__ == "__main__":  # `--include examples` reads this file, too
    main(*sys.argv[1:])
