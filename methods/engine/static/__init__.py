"""Steps of fixed shapes: what a GPU can replay as graphs, and a CPU runs one call after another in tests."""
