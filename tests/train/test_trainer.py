from __future__ import annotations

import json
import math
import random

import numpy
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from stepwell.errors import DeviceError, TrainingError
from stepwell.model.config import ModelConfig
from stepwell.tasks.arithmetic import Arithmetic
from stepwell.tasks.base import IGNORE, Batch, Task
from stepwell.tasks.corpus import Corpus
from stepwell.tasks.example import Example
from stepwell.tasks.facts import Facts
from stepwell.tasks.rename import VariableRenaming
from stepwell.train.base import fitted
from stepwell.train.trainer import Trainer

RENAMING = VariableRenaming(chains=2, renames=6)


class Labels(Task):
    """Texts with one to four labels, so that the halves of a batch differ in how many they have."""

    def example(self, index: int) -> Example:
        rng = self.rng(index)
        return Example.completion(f"{rng.randrange(10**6)}=", "7" * rng.randint(1, 4))


def gradients(config, batch=None) -> dict[str, torch.Tensor]:
    trainer = Trainer(config)
    trainer.gradients(trainer.batch(0) if batch is None else batch)
    return {name: p.grad for name, p in trainer.model.named_parameters()}


def assert_close(found, expected, rtol: float) -> None:
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_give_the_gradients_of_the_whole_batch(small, parts):
    config = small(task=Labels(), gradient_accumulation=1)
    whole = gradients(config)
    assert_close(gradients(config.changed(gradient_accumulation=parts)), whole, rtol=2e-6)


def test_the_mean_of_the_halves_gradients_is_another(small):
    """Negative control: without the weights by count the law above fails."""
    config = small(task=Labels())
    batch = Trainer(config).batch(0)
    first, second = (
        gradients(config, Batch(batch.ids[half], batch.labels[half], batch.depths[half]))
        for half in (slice(0, 4), slice(4, 8))
    )
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    with pytest.raises(AssertionError):
        assert_close(mean, gradients(config), rtol=2e-6)


def bytes_saved(config) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    trainer = Trainer(config)
    trainer.model.train()
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.loss(trainer.batch(0))  # noqa: F841  # the graph must live
    return sum(kept.values())


DEEP = ModelConfig(width=32, num_layers=4, num_heads=2)


def test_gradient_checkpointing_gives_the_same_gradients_in_less_memory(small):
    config = small(task=RENAMING, model=DEEP)
    frugal = config.changed(gradient_checkpointing=True)
    expected = gradients(config)
    assert all(torch.equal(value, expected[name]) for name, value in gradients(frugal).items())
    assert bytes_saved(frugal) < 0.7 * bytes_saved(config)


@pytest.mark.parametrize("frugal", [False, True])
def test_a_plan_foresees_parameters_and_memory(small, frugal):
    config = small(task=RENAMING, model=DEEP, batch_size=32, gradient_checkpointing=frugal)
    plan = Trainer(config).plan()
    trainer = Trainer(config)
    assert plan.parameters == sum(p.numel() for p in trainer.model.parameters())
    assert plan.tokens == 12 * trainer.batch(0).ids.numel()
    assert plan.trained_tokens == 12 * 32 * 6
    foreseen = plan.memory_bytes - 16 * plan.parameters
    one_layer = bytes_saved(config.changed(gradient_checkpointing=False)) / DEEP.num_layers
    needed = bytes_saved(config) + (one_layer if frugal else 0)
    assert foreseen == pytest.approx(needed, rel=0.25)
    assert "model" not in vars(Trainer(config)), "a plan must not build the model"


def test_the_model_fits_the_task(small):
    task = Arithmetic()
    model = fitted(ModelConfig(vocab_size=5, context_length=4, width=32, mlp_width=40), task)
    assert model.vocab_size == task.tokenizer.vocab_size
    assert model.context_length == task.context_length
    assert model.eos_ids == (task.tokenizer.eos_id,)
    assert (model.width, model.mlp_width) == (32, 40)
    assert fitted(ModelConfig(context_length=4096), task).context_length == 4096


def test_training_learns_what_can_be_learnt(small):
    config = small(steps=150, batch_size=64, evaluate_every=0, save_every=0)
    run = Trainer(config).train()
    assert run.metrics["answer_accuracy"] > 0.9
    assert run.step == 150
    untrained = Trainer(config.changed(run_name="other")).evaluate()
    assert untrained["answer_accuracy"] < 0.1


@pytest.mark.parametrize(
    ("tokens", "text"), [("character", "Ça va, à bientôt. "), ("bpe", "Step by step, down. ")]
)
def test_running_text_is_measured_in_bits_a_byte(small, tmp_path, tokens, text):
    path = tmp_path / "text.txt"
    path.write_text(text * 400)
    task = Corpus(path=path, tokens=tokens, vocab_size=270, window=8)
    trainer = Trainer(small(task=task, evaluation_batches=1))
    batch = task.batch("validation", range(8))
    logits = trainer.model(batch.ids).log_softmax(-1)
    nats = -logits.gather(2, batch.labels[..., None]).sum().item()
    said = sum(len(task.tokenizer.decode(row.tolist()).encode()) for row in batch.labels)
    found = trainer.evaluate()
    assert found.keys() == {"loss", "accuracy", "bits_per_byte"}
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / said, rel=1e-5)
    assert said > batch.labels.numel()  # bits a token would be another number


@pytest.mark.parametrize("option", [{"precision": "bfloat16"}, {"gradient_checkpointing": True}])
def test_options_of_the_arithmetic_train_too(small, option):
    config = small(steps=40, batch_size=64, save_every=0, **option)
    trainer = Trainer(config)
    before = trainer.evaluate()["loss"]
    assert trainer.train().metrics["loss"] < 0.8 * before
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_the_data_of_a_step_are_the_tasks_examples_in_order(small):
    config = small()
    trainer = Trainer(config)
    for step in (0, 5):
        expected = config.task.batch("train", range(step * 8, step * 8 + 8))
        assert torch.equal(trainer.batch(step).ids, expected.ids)
        assert torch.equal(trainer.batch(step).labels, expected.labels)


def test_a_subclass_decides_what_is_minimised_and_counted(small):
    class Backwards(Trainer):
        """Learns to avoid the labels, and counts rows."""

        def loss(self, batch):
            return -super().loss(batch)

        def metrics(self, batch):
            found = super().metrics(batch)
            return {"loss": (-found["loss"][0], found["loss"][1]), "rows": (len(batch.ids), 1)}

    run = Backwards(small()).train()
    assert run.metrics["rows"] == 8
    assert run.metrics["loss"] < Backwards(small(run_name="other")).evaluate()["loss"]


def test_metrics_without_a_loss_are_refused(small):
    class Lossless(Trainer):
        def metrics(self, batch):
            return {"rows": (len(batch.ids), 1)}

    with pytest.raises(TrainingError, match="gives rows and no loss"):
        Lossless(small()).train()


def test_a_batch_without_labels_is_refused(small):
    class Empty(Facts):
        def batch(self, split, indices):
            batch = super().batch(split, indices)
            return Batch(batch.ids, torch.full_like(batch.labels, IGNORE), batch.depths)

    with pytest.raises(TrainingError, match="none of the 8 examples"):
        Trainer(small(task=Empty(facts=16))).train()


def test_a_device_that_is_not_there_is_refused(small):
    with pytest.raises(DeviceError):
        Trainer(small(device="cuda:99"))


def test_training_leaves_generators_and_threads_as_they_were(small):
    torch.manual_seed(5)
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    threads = torch.get_num_threads()
    Trainer(small(threads=2, steps=2)).train()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == threads


def test_two_runs_of_one_configuration_are_the_same(small):
    torch.manual_seed(1)
    first = Trainer(small(run_name="first")).train()
    torch.manual_seed(2)
    second = Trainer(small(run_name="second")).train()
    weights = [(run.directory / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    other = Trainer(small(run_name="third", seed=1)).train()
    assert (other.directory / "model.safetensors").read_bytes() != weights[0]


def test_samples_show_what_the_model_says(small):
    run = Trainer(small(steps=150, batch_size=64, evaluate_every=0, save_every=0)).train()
    lines = (run.directory / "samples" / "step-00000150.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["text"][-3:] for sample in samples] == [s["expected"] for s in samples]
    assert sum(sample["expected"] == sample["predicted"] for sample in samples) == 2
