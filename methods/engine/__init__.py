"""What methods are made of. Knows no method by name.

loop (the algorithm box) = grow (where methods differ) + target (verify a tree) + verify (accept a path).
"""
