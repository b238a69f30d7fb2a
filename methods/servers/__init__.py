"""Engines behind HTTP, which `methods/server.py` asks: one file an engine; `wire` speaks HTTP, `engines` finds out whose."""
