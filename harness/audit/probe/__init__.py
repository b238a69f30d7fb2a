"""What an audit looks at and how: subjects, exact laws, replayed logits, scores. Findings come from here."""
