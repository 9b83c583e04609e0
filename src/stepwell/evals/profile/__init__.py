"""Profiles: where the time of one answer goes, by phase and by part of the model."""
