"""What a tree pays: tau of any dynamic tree from one drafting pass over known text, and races of other options."""
