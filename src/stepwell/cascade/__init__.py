"""The cascade: several sizes of model behind each other; a prompt goes only as deep as it needs.

Stages are numbered 1..K, small to large; stage 0 is the state in which only the prompt was seen.
"""
