"""The trainer: what is computed at each step. A subclass overrides `loss` and `metrics`.

    run = Trainer(TrainerConfig(model=presets["tiny"], task=task, steps=2000)).train()

Owns model, optimizer and the arithmetic of a step and of an evaluation. When these happen, and what
is written where, is the business of `loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parametrize
from torch.optim import AdamW

from stepwell.device import pick_device, set_threads
from stepwell.errors import TrainingError
from stepwell.model.hooks import Hooks
from stepwell.model.interventions import parse_interventions
from stepwell.model.transformer import Transformer
from stepwell.tasks.base import IGNORE, Batch
from stepwell.train import optim
from stepwell.train.base import Base, fitted
from stepwell.train.config import TrainerConfig
from stepwell.train.log import Progress, Silent
from stepwell.train.loop import Loop, resume
from stepwell.train.lora import adapt, plain_model
from stepwell.train.objective import (
    averages,
    label_loss,
    label_metrics,
    pieces,
    predictions,
    text_metrics,
)
from stepwell.train.plan import Plan, make_plan
from stepwell.train.run_folder import Run, RunFolder


class Trainer:
    """Trains one model on one task. `train` does everything; the other methods are its parts.

    model_config: the configured shape with the task's vocabulary, special tokens and, where the
    task's texts are longer, its context length. Where the run begins with a model (`base`), that
    one's shape, with rows for tokens that are new to it.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self.task = config.task
        self.device = pick_device(config.device)
        self.base = Base(config.init_from) if config.init_from else None
        fit = self.base.fitted if self.base else fitted
        self.model_config = fit(config.model, config.task)
        self._begun = False

    # -- to be overridden ------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """What a step minimises: a scalar with a graph, averaged over the batch's labels.

        By default the mean cross entropy where labels != IGNORE; logits[t] predicts labels[t].
        """
        return label_loss(self.model, batch)

    def metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """(sum, count) by name; an evaluation divides the sums over batches. Needs a "loss".

        By default loss, accuracy, answer_accuracy and accuracy/depth_N; of running text the first
        two and bits_per_byte. The best weights are those with the lowest "loss".
        """
        found = label_metrics(self.model, batch)
        return text_metrics(found, batch, self._byte_lengths) if self.task.is_text else found

    # -- the run ---------------------------------------------------------------------------

    def train(
        self,
        *,
        fresh: bool = False,
        progress: Progress | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Run:
        """Trains to the end, from the newest checkpoint where there is one; a finished run returns.

        fresh: remove what the run's folder holds, and begin anew. stop_requested: asked between
        steps; once it says yes the run is saved and KeyboardInterrupt raised, as with Ctrl-C.
        torch's generators and thread count are afterwards as they were before.

        Raises ConfigError where the folder is the run of another configuration, CheckpointError
        where the disk fails or all checkpoints are damaged, TrainingError by the policy `on_nan`.
        """
        folder = RunFolder(self.config.directory)
        with folder.locked(), self._surroundings():
            if fresh:
                folder.clear()
            state = resume(self, folder)
            if state is None and self._begun:
                self.forget()
            self._begun = True
            if state is None or not state.is_end(self.config.steps, self.config.patience):
                Loop(self, folder, state, progress or Silent()).run(stop_requested)
        return Run.load(folder.directory)

    def plan(self) -> Plan:
        """Parameters, tokens, memory and disk of the run, without building the model."""
        return make_plan(self.config, self.model_config, self.batch(0), len(self._new_ids))

    # -- its parts -------------------------------------------------------------------------

    @cached_property
    def model(self) -> Transformer:
        """The model on its device: the weights of `init_from`, or those that the seed gives."""
        if self.base is not None:
            model = self.base.model(self.model_config)
            if self.config.lora is not None:
                adapt(model, self.config.lora, self._new_ids, self.config.seed)
        else:
            model = Transformer(self.model_config)
            model.initialize(self.config.seed)
        model.gradient_checkpointing = self.config.gradient_checkpointing
        if self.config.compile:
            model.compile_parts()
        if self.config.interventions:
            model.hooks = Hooks(parse_interventions(self.config.interventions))
            model.hooks.check(model.config)
        return model.to(self.device)

    @property
    def plain_model(self) -> Transformer:
        """The model as it is saved: what LoRA has learnt is merged into its matrices."""
        return self.model if self.config.lora is None else plain_model(self.model)

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """What generation_config.json of the base says of sampling, token ids left out."""
        known = self.base.generation if self.base else {}
        return {key: value for key, value in known.items() if not key.endswith("_token_id")}

    @cached_property
    def optimizer(self) -> AdamW:
        """The optimizer of the model's parameters."""
        return optim.make_optimizer(self.model, self.config.optimizer)

    def batch(self, step: int) -> Batch:
        """The examples of step number `step` (from 0), on the CPU.

        Raises TrainingError where not one of their tokens has a label.
        """
        size = self.config.batch_size
        batch = self._examples("train", range(step * size, (step + 1) * size))
        if not bool((batch.labels != IGNORE).any()):
            raise TrainingError(
                f"Step {step}: none of the {size} examples of task {self.task.name} has a label.",
                fix="look at the examples with `stepwell preview`.",
            )
        return batch

    def compile(self) -> None:
        """Lets the compiler see step 0, where the configuration asks for one; moves nothing.

        What it compiles depends on what it sees first. A run that is resumed shows it the same, and
        goes on to the bit. Raises TrainingError where it cannot compile.
        """
        if not self.config.compile:
            return
        from torch._dynamo.exc import BackendCompilerFailed

        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                self.gradients(self.batch(0))
        except BackendCompilerFailed as error:
            raise TrainingError(
                f"torch.compile failed: {str(error).splitlines()[0]}.",
                fix="install a C++ compiler (g++), or train without compile.",
            ) from error

    def gradients(self, batch: Batch) -> Tensor:
        """The loss of a batch, without a graph; leaves its gradients in the parameters."""
        self.model.train()
        self.optimizer.zero_grad()
        losses = []
        for piece, share in pieces(batch, self.config.gradient_accumulation):
            with self._precision():
                loss = self.loss(piece.to(self.device)) * share
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def update(self, step: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Moves the weights; (loss, gradient norm), the loss NaN where the step was refused."""
        rate = optim.learning_rate(self.config.optimizer, step, self.config.steps)
        return optim.update(self.optimizer, self._parameters, loss, rate, self.config.clip)

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """The metrics' means over `evaluation_batches` batches of a split.

        Of a mixture also the loss of each part, loss/NAME.
        """
        self.model.eval()
        size = self.config.batch_size
        parts: list[dict[str, tuple[float, float]]] = []
        with torch.no_grad(), self._precision():
            for number in range(self.config.evaluation_batches):
                indices = range(number * size, (number + 1) * size)
                parts += self._counted(split, indices)
        return averages(parts)

    def samples(self) -> list[dict[str, str]]:
        """Some validation examples and what the model says at their labels, given the true text."""
        indices = range(self.config.samples)
        examples = [self.task.example_in("validation", index) for index in indices]
        self.model.eval()
        with torch.no_grad(), self._precision():
            said = predictions(self.model, self.task.batch("validation", indices).to(self.device))
        decode = self.task.tokenizer.decode
        return [
            {"text": example.text, "expected": example.answer, "predicted": decode(ids)}
            for example, ids in zip(examples, said, strict=True)
        ]

    def _counted(
        self, split: str, indices: Sequence[int]
    ) -> Iterator[dict[str, tuple[float, float]]]:
        """The metrics of a batch; of a mixture part by part, beside each part's own loss."""
        parts = self.task.by_part(split, indices)
        if not parts:
            yield self.metrics(self._examples(split, indices).to(self.device))
        for name, own in parts.items():
            found = self.metrics(self._examples(split, own).to(self.device))
            yield found
            yield {f"loss/{name}": value for key, value in found.items() if key == "loss"}

    def _examples(self, split: str, indices: Sequence[int]) -> Batch:
        """The task's batch, packed in rows as wide as its own where that is asked for."""
        batch = self.task.batch(split, indices)
        if not self.config.pack:
            return batch
        return Batch.packed(batch.rows(), width=batch.ids.shape[1])

    def forget(self) -> None:
        """Drops model and optimizer; the next use builds them anew from the seed."""
        for name in ("model", "optimizer", "_parameters"):
            self.__dict__.pop(name, None)

    @cached_property
    def _byte_lengths(self) -> Tensor:
        return torch.tensor(self.task.tokenizer.byte_lengths, device=self.device)

    @property
    def _new_ids(self) -> list[int]:
        """The tokens that the base does not know."""
        return self.base.new_ids(self.task.tokenizer) if self.base else []

    @cached_property
    def _parameters(self) -> list[Parameter]:
        return list(self.model.parameters())

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Products as the configuration says; matrices with learnt rows are put together once."""
        mixed = self.config.precision == "bfloat16"
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)
        with autocast, parametrize.cached():
            yield

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """torch's generators and threads as the configuration says, and put back afterwards."""
        threads = torch.get_num_threads()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.config.seed)
            set_threads(self.config.threads or threads)
            try:
                yield
            finally:
                set_threads(threads)
