"""The same work on several machines: shards of it are shared out to workers, whose messages come back to the driver.

The room knows neither runs nor audits. Whoever has work hands over shards, how a worker is made, and a desk for its messages.
"""
