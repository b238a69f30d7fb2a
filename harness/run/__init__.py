"""Methods crossed with tasks on one loaded model: planned, measured, recorded, resumable."""
