"""Draft heads as other projects lay them out: read by our names, written so that they load there."""
