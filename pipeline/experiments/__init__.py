"""Experiments about training as such, not about one artifact: a study of many seeds, a sweep."""
