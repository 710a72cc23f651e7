"""Training a network: recipe, trainer, oneDNN step and snapshots."""
