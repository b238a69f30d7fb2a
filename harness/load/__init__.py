"""From a model's YAML to a target, its drafters and its tokenizer."""
