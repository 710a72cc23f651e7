"""What is on record about every artifact, and how files are written."""
