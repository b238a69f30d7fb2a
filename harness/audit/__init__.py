"""Losslessness audited: `law` has the exact law of a method's output, every branch of chance walked."""
