"""The machine that runs this: its hardware, its load, and what is installed on it."""
