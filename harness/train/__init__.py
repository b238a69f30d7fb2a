"""Training draft heads: prompts and answers (`data`), batched generation by the target (`generate`), the trainer (`eagle`)."""
