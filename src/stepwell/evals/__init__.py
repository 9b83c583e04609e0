"""Evaluation: how good and how dear models and cascades are, measured with intervals."""
