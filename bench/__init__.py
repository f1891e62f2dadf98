"""Measures what a request costs on its way through a real server and a real agent; docs/how-to/benchmark.md says how to read it."""
