"""Image sets and pictures as arrays."""
