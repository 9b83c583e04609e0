"""The kinds of stages: our own engine, transformers, and OpenAI-compatible servers."""
