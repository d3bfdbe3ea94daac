"""A minimal bridge, for tests and benchmarks: `python -m examples.echo [CONCURRENCY]`."""
