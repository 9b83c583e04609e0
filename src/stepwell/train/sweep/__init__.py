"""Sweeps: many runs of one configuration with some fields varied, over several processes.

`axes` says what is varied, `folder` who runs what, `work` and `worker` run it, `crew` keeps the
workers going, `search` proposes values, `result` and `page` say what came of it; `run` is the face.
"""
