"""The learning-rate sweep: its command, its shared storage, trials and workers."""
