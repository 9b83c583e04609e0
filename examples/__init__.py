"""Experiments of one's own: a task or a trainer in a few lines, with the flags of `stepwell train`.

python -m examples.var_rename --num-layers 4 --num-heads 8 --run-name my_experiment
"""
