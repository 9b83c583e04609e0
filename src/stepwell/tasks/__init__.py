"""Tasks: where the data comes from. Each is a configuration from which examples follow."""

from __future__ import annotations

from stepwell.tasks.arithmetic import Arithmetic
from stepwell.tasks.base import Task, task_from_plain
from stepwell.tasks.chats import Chats
from stepwell.tasks.corpus import Corpus
from stepwell.tasks.dag import DagReachability
from stepwell.tasks.dataset import check_leakage, read_dataset, write_dataset
from stepwell.tasks.documents import Documents
from stepwell.tasks.evaluate import VariableEvaluation
from stepwell.tasks.example import IGNORE, SPLITS, Batch, Encoded, Example, Target
from stepwell.tasks.facts import Facts
from stepwell.tasks.gsm8k import GSM8K
from stepwell.tasks.mixture import Mixture, MixturePart
from stepwell.tasks.pairs import Pairs
from stepwell.tasks.rename import VariableRenaming
from stepwell.tasks.unpredictable import Unpredictable

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for kind in (
        VariableRenaming,
        VariableEvaluation,
        DagReachability,
        Facts,
        Arithmetic,
        Unpredictable,
        Corpus,
        Documents,
        Pairs,
        Chats,
        GSM8K,
        Mixture,
    )
}

__all__ = [
    "GSM8K",
    "IGNORE",
    "SPLITS",
    "TASKS",
    "Arithmetic",
    "Batch",
    "Chats",
    "Corpus",
    "DagReachability",
    "Documents",
    "Encoded",
    "Example",
    "Facts",
    "Mixture",
    "MixturePart",
    "Pairs",
    "Target",
    "Task",
    "Unpredictable",
    "VariableEvaluation",
    "VariableRenaming",
    "check_leakage",
    "read_dataset",
    "task_from_plain",
    "write_dataset",
]
