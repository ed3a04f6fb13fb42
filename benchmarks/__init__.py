"""Speed of emppl beside its peers. ``python -m benchmarks`` measures and writes ``benchmarks/results.md``."""
