"""Where findings come from: exact laws, replayed logits, the control, scores, lanes. Verdicts are made elsewhere."""
