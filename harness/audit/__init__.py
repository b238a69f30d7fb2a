"""Is a method lossless? An audit plans findings, makes what is missing, and judges them. Start at `audit.py`."""
