"""The cascade: several sizes of model behind each other; a prompt goes only as deep as it needs.

    a ladder    ladder (the file), build, prepare: collect, collection, splits, costs -> fitted
    at work     pipeline, walk, answer; stage, guard and stages/; kv
    beliefs/    how likely each stage's answer is right
    rule/       when to stop: pure arrays

Stages are numbered 1..K, small to large; stage 0 is the state in which only the prompt was seen.
"""
