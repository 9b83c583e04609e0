"""Files that are there whole or not at all: replaced together, sealed by hashes, verified."""
