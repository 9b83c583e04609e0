"""stepwell: train, look inside, generate from and cascade decoder-only transformers.

    import stepwell as sw

Names are imported when they are first used, so that importing the package loads neither torch nor
anything else that is heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwell.errors import StepwellError
from stepwell.version import __version__

if TYPE_CHECKING:
    from stepwell import tasks as tasks
    from stepwell.cascade.pipeline import Cascade as Cascade
    from stepwell.cascade.rule import stopping as stopping
    from stepwell.evals.evaluate import evaluate as evaluate
    from stepwell.evals.lm_eval import lm_eval_model as lm_eval_model
    from stepwell.evals.math_answer import check_math as check_math
    from stepwell.evals.profile.cascade import profile_cascade as profile_cascade
    from stepwell.evals.profile.run import profile_inference as profile_inference
    from stepwell.evals.protocol import evaluate_cascade as evaluate_cascade
    from stepwell.evals.temperature import temperature_study as temperature_study
    from stepwell.generate.conversation import Conversation as Conversation
    from stepwell.generate.engine import InferenceEngine as InferenceEngine
    from stepwell.generate.finished_draft import FinishedDraft as FinishedDraft
    from stepwell.generate.recording_files import read_recording as read_recording
    from stepwell.generate.recording_files import write_recording as write_recording
    from stepwell.generate.request import Request as Request
    from stepwell.generate.request import SamplingParams as SamplingParams
    from stepwell.generate.response_cache import ResponseCache as ResponseCache
    from stepwell.generate.tape import Record as Record
    from stepwell.generate.text import TextGenerator as TextGenerator
    from stepwell.generate.workers import WorkerPool as WorkerPool
    from stepwell.model.adapter import merge_adapter as merge_adapter
    from stepwell.model.config import ModelConfig as ModelConfig
    from stepwell.model.interventions import Patch as Patch
    from stepwell.model.interventions import Replace as Replace
    from stepwell.model.interventions import Scale as Scale
    from stepwell.model.interventions import Steer as Steer
    from stepwell.model.interventions import ZeroHeads as ZeroHeads
    from stepwell.model.interventions import parse_interventions as parse_interventions
    from stepwell.model.presets import presets as presets
    from stepwell.model.transformer import Transformer as Transformer
    from stepwell.model.weights import load_model as load_model
    from stepwell.model.weights import save_model as save_model
    from stepwell.study.attribute import attribute_heads as attribute_heads
    from stepwell.study.attribute import attribute_patches as attribute_patches
    from stepwell.study.head_scores import head_scores as head_scores
    from stepwell.study.heatmap import heatmap as heatmap
    from stepwell.study.heatmap import token_heatmap as token_heatmap
    from stepwell.study.lens import logit_lens as logit_lens
    from stepwell.study.patch import patch_heads as patch_heads
    from stepwell.study.patch import patch_positions as patch_positions
    from stepwell.study.patch import zero_heads as zero_heads
    from stepwell.study.shapley import shapley_heads as shapley_heads
    from stepwell.tasks import Example as Example
    from stepwell.tasks import Task as Task
    from stepwell.text.prompt_template import PromptTemplates as PromptTemplates
    from stepwell.text.tokenizer import Tokenizer as Tokenizer
    from stepwell.train.config import LoraConfig as LoraConfig
    from stepwell.train.config import TrainerConfig as TrainerConfig
    from stepwell.train.sweep.run import sweep as sweep
    from stepwell.train.trainer import Trainer as Trainer

_HOMES = {
    "Cascade": "stepwell.cascade.pipeline",
    "Conversation": "stepwell.generate.conversation",
    "Example": "stepwell.tasks",
    "FinishedDraft": "stepwell.generate.finished_draft",
    "InferenceEngine": "stepwell.generate.engine",
    "LoraConfig": "stepwell.train.config",
    "ModelConfig": "stepwell.model.config",
    "Patch": "stepwell.model.interventions",
    "PromptTemplates": "stepwell.text.prompt_template",
    "Record": "stepwell.generate.tape",
    "Replace": "stepwell.model.interventions",
    "Request": "stepwell.generate.request",
    "ResponseCache": "stepwell.generate.response_cache",
    "SamplingParams": "stepwell.generate.request",
    "Scale": "stepwell.model.interventions",
    "Steer": "stepwell.model.interventions",
    "Task": "stepwell.tasks",
    "TextGenerator": "stepwell.generate.text",
    "Tokenizer": "stepwell.text.tokenizer",
    "Trainer": "stepwell.train.trainer",
    "TrainerConfig": "stepwell.train.config",
    "Transformer": "stepwell.model.transformer",
    "WorkerPool": "stepwell.generate.workers",
    "ZeroHeads": "stepwell.model.interventions",
    "attribute_heads": "stepwell.study.attribute",
    "attribute_patches": "stepwell.study.attribute",
    "check_math": "stepwell.evals.math_answer",
    "evaluate": "stepwell.evals.evaluate",
    "evaluate_cascade": "stepwell.evals.protocol",
    "head_scores": "stepwell.study.head_scores",
    "heatmap": "stepwell.study.heatmap",
    "lm_eval_model": "stepwell.evals.lm_eval",
    "load_model": "stepwell.model.weights",
    "logit_lens": "stepwell.study.lens",
    "merge_adapter": "stepwell.model.adapter",
    "parse_interventions": "stepwell.model.interventions",
    "patch_heads": "stepwell.study.patch",
    "patch_positions": "stepwell.study.patch",
    "presets": "stepwell.model.presets",
    "profile_cascade": "stepwell.evals.profile.cascade",
    "profile_inference": "stepwell.evals.profile.run",
    "read_recording": "stepwell.generate.recording_files",
    "save_model": "stepwell.model.weights",
    "shapley_heads": "stepwell.study.shapley",
    "sweep": "stepwell.train.sweep.run",
    "temperature_study": "stepwell.evals.temperature",
    "token_heatmap": "stepwell.study.heatmap",
    "write_recording": "stepwell.generate.recording_files",
    "zero_heads": "stepwell.study.patch",
}
_MODULES = {"stopping": "stepwell.cascade.rule.stopping", "tasks": "stepwell.tasks"}

__all__ = ["StepwellError", "__version__", *sorted({**_HOMES, **_MODULES})]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'stepwell' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
