"""Training: a configuration in, a run folder out that is a Hugging Face model directory."""
