"""The model: one Transformer, its cache, its hook points, and its files."""
