"""Experiments on training, not on one artifact: a study of many seeds, a sweep, a teacher's labels."""
