"""One run sets two sides beside each other: `python -m benchmarks.NAME` from the repository."""
