"""The order of things in a run: steps, records, evaluations, checkpoints, and how it ends.

Owns where a run stands and what is written when. What a step computes is the business of `trainer`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stepwell.config import write_atomically
from stepwell.errors import CheckpointError, TrainingError
from stepwell.storage.sealed import commit, disk
from stepwell.train.checkpoint import (
    Best,
    TrainerState,
    as_text,
    checkpoint_path,
    newest,
    prune,
    random_states,
    read_optimizer,
    read_state,
    read_weights,
    restore_random_states,
    write_model,
    write_state,
)
from stepwell.train.environment import environment, own_sources
from stepwell.train.log import Meter, MetricsLog, Progress, Window
from stepwell.train.lora import save_adapter
from stepwell.train.optim import learning_rate
from stepwell.train.report import refresh_report
from stepwell.train.run_folder import ADAPTER, RunFolder

if TYPE_CHECKING:
    from stepwell.train.trainer import Trainer

logger = logging.getLogger(__name__)


def resume(trainer: Trainer, folder: RunFolder) -> TrainerState | None:
    """Makes the folder the trainer's, and the trainer what its newest checkpoint holds.

    None where there is no checkpoint: the run begins. Raises ConfigError and CheckpointError.
    """
    folder.sweep()
    base = trainer.base.fingerprint if trainer.base else None
    folder.claim(trainer.config, trainer.task.fingerprint, base)
    path = newest(folder.directory)
    if path is None:
        return None
    state = read_state(path)
    if state.run != trainer.config.identity:
        raise CheckpointError(
            f"{path} belongs to another run than {folder.directory / 'run.yaml'}.",
            fix="move it away, or train anew with fresh=True.",
        )
    if state.threads != torch.get_num_threads():
        logger.warning(
            "%s was computed with %d threads, now there are %d: roundings will differ.",
            path.name,
            state.threads,
            torch.get_num_threads(),
        )
    read_weights(path, trainer.model)
    read_optimizer(path, trainer.model, trainer.optimizer)
    restore_random_states(state.random, trainer.device)
    return state


class Loop:
    """One session of a run, from a state (None: from the start) to the last step.

    Between two steps the run can be saved: weights, optimizer, `_random` and the rest belong to the
    same step. `_settled` says whether that is so now.
    """

    def __init__(
        self, trainer: Trainer, folder: RunFolder, state: TrainerState | None, progress: Progress
    ) -> None:
        self.trainer, self.config, self.folder = trainer, trainer.config, folder
        self.progress = progress
        self.step = self._saved = state.step if state else 0
        self.tokens = state.tokens if state else 0
        self.best = self._standing(state.best) if state else None
        self._lowest = state.lowest if state else None
        self._since_lowest = state.since_lowest if state else 0
        self._window = Window(state.window() if state else [])
        self._meter = Meter(state.seconds if state else 0.0)
        self._log = MetricsLog(
            folder.directory,
            step=self.step,
            committed_bytes=state.metrics_bytes if state else 0,
            digits=self.config.log_digits,
        )
        self._random = random_states(trainer.device)
        self._settled = True

    def run(self, stop_requested: Callable[[], bool]) -> None:
        """Takes all steps that are left. Interrupted, it saves first where it can."""
        trainer = self.trainer
        sources = own_sources(type(trainer), type(trainer.task))
        self.progress.start(self.config.steps, self.folder.directory.name)
        try:
            self.folder.begin_session(environment(trainer.device, self.step), sources)
            trainer.compile()
            while self.step < self.config.steps and not self._out_of_patience:
                if stop_requested():
                    raise KeyboardInterrupt
                self._advance()
            if self._out_of_patience:
                self.progress.update(self.step, {})  # it may be between two records
        except KeyboardInterrupt:
            self._save_if_settled()
            raise
        finally:
            self.progress.finish()
            self._log.close()
            refresh_report(self.folder.directory, ended=True)

    def _advance(self) -> None:
        batch = self.trainer.batch(self.step)
        loss = self.trainer.gradients(batch)
        self._settled = False
        loss, norm = self.trainer.update(self.step, loss)
        self.step += 1
        self.tokens += batch.ids.numel()
        self._meter.add(batch.ids.numel())
        self._window.add(loss)
        if self._due(self.config.log_every):
            self._record(norm)
        if self._due(self.config.evaluate_every):
            self._evaluate()
        self._random = random_states(self.trainer.device)
        self._settled = True
        if self._due(self.config.save_every) or self._out_of_patience:
            self._save()

    def _epochs(self) -> dict[str, float]:
        """Where the run stands in its data, where that has an end."""
        return self.trainer.task.epochs(self.step * self.config.batch_size)

    def _due(self, every: int) -> bool:
        """Whether what happens `every` steps (0: only at the end) happens after this one."""
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    # -- what happens between steps ----------------------------------------------------------

    def _record(self, norm: torch.Tensor) -> None:
        losses = self._finished_losses()
        finite = [loss for loss in losses if math.isfinite(loss)]
        values = {
            "loss": math.fsum(finite) / len(finite) if finite else math.nan,
            "lr": learning_rate(self.config.optimizer, self.step - 1, self.config.steps),
            "grad_norm": float(norm),
            "tokens": self.tokens,
            **self._epochs(),
            "skipped": len(losses) - len(finite),
            "seconds": self._meter.seconds,
            "tokens_per_s": self._meter.rate(),
        }
        self._log.write(self.step, "train", values)
        self.progress.update(self.step, values)
        self._window.clear()

    def _evaluate(self) -> None:
        self._finished_losses()
        metrics = self.trainer.evaluate()
        if "loss" not in metrics:
            raise TrainingError(
                f"{type(self.trainer).__name__}.metrics gives {', '.join(metrics) or 'nothing'}"
                " and no loss, by which the best weights are chosen.",
                fix='return ("loss": (sum, count)) as well.',
            )
        self._count_patience(metrics["loss"])
        patience = {"since_lowest": self._since_lowest} if self.config.patience else {}
        self._log.write(self.step, "validation", {**metrics, **patience})
        self._write_samples()
        if self.best is None or metrics["loss"] < self.best.loss:
            self._publish(metrics)
        refresh_report(self.folder.directory)
        self._meter.restart()

    def _count_patience(self, loss: float) -> None:
        if math.isfinite(loss) and (self._lowest is None or loss < self._lowest):
            self._lowest, self._since_lowest = loss, 0
        else:
            self._since_lowest += 1

    @property
    def _out_of_patience(self) -> bool:
        """Whether as many evaluations as there is patience for have brought no better loss."""
        return 0 < self.config.patience <= self._since_lowest

    def _publish(self, metrics: dict[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if self.config.lora is not None:  # first: what is published last says what is there
            commit(self.folder.directory / ADAPTER, self._write_adapter)
        self.folder.publish(self._write_model, self.step, plain)
        self.best = Best(step=self.step, metrics=plain)

    def _write_model(self, hidden: Path) -> None:
        trainer = self.trainer
        write_model(hidden, trainer.plain_model, trainer.task, trainer.sampling_defaults)

    def _write_adapter(self, hidden: Path) -> None:
        assert self.config.lora is not None
        save_adapter(hidden, self.trainer.model, self.config.lora, str(self.config.init_from))
        self.trainer.task.tokenizer.save(hidden)

    def _write_samples(self) -> None:
        if not self.config.samples:
            return
        lines = [json.dumps(sample, ensure_ascii=False) for sample in self.trainer.samples()]
        path = self.folder.directory / "samples" / f"step-{self.step:08d}.jsonl"
        with disk(path):
            write_atomically(path, "\n".join(lines) + "\n")

    def _finished_losses(self) -> list[float]:
        """The losses since the last record. Raises TrainingError by the policy on_nan."""
        losses = self._window.losses()
        refused = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        if refused and self.config.on_nan == "stop":
            raise TrainingError(
                f"Step {self.step - len(losses) + refused[0]}: loss or gradient is not finite."
                f" The last checkpoint is of step {self._saved}.",
                fix="lower optimizer.lr, raise optimizer.warmup, or set on_nan=skip.",
            )
        return losses

    def _save(self) -> None:
        """Commits a checkpoint of this step, then lets go of the oldest."""
        state = self._state()
        trainer = self.trainer

        def fill(hidden: Path) -> None:
            self._write_model(hidden)
            write_state(hidden, state, trainer.model, trainer.optimizer)

        commit(checkpoint_path(self.folder.directory, self.step), fill)
        self._saved = self.step
        prune(self.folder.directory, self.config.keep_checkpoints)
        self._meter.restart()

    def _save_if_settled(self) -> None:
        if not self._settled:
            logger.warning("Interrupted within an update: step %d is the last saved.", self._saved)
        elif self.step != self._saved:
            self._save()

    def _state(self) -> TrainerState:
        losses = self._finished_losses()
        return TrainerState(
            step=self.step,
            tokens=self.tokens,
            seconds=self._meter.seconds,
            losses=tuple(loss if math.isfinite(loss) else None for loss in losses),
            metrics_bytes=self._log.commit(),
            random={kind: as_text(state) for kind, state in self._random.items()},
            threads=torch.get_num_threads(),
            run=self.config.identity,
            best=self.best,
            epochs=self._epochs(),
            lowest=self._lowest,
            since_lowest=self._since_lowest,
        )

    def _standing(self, best: Best | None) -> Best | None:
        """`best`, unless its weights have been replaced since by those of a later step."""
        return best if best and self.folder.published_step() == best.step else None
