"""`python -m pipeline`, the same as the command `pipeline`."""

from pipeline.cli.main import main

main()
