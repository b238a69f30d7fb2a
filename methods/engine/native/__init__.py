"""The native engine: a forward in C, compiled on the machine that it runs on."""
