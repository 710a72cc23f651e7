"""Statistics and timing."""
