"""What the commands do: check the input, load, run, print. No arithmetic on results here; flags are in `harness.cli`."""
