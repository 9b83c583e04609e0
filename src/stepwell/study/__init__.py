"""Methods that look inside a model: what attends where, what a head causes, what a layer knows.

The hook points and the recordings themselves belong to `stepwell.model` and `stepwell.generate`.
"""
