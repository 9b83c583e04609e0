"""A run that begins with a model: its shape, its tokens, its weights, and what must fit to them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.chats import CHATML, chat_tokenizer

import stepwell as sw
from stepwell.errors import ConfigError, DataError, TokenizerError
from stepwell.model.config import ModelConfig
from stepwell.tasks import Arithmetic, Chats, Facts
from stepwell.train.base import Base
from stepwell.train.config import OptimizerConfig, TrainerConfig
from stepwell.train.trainer import Trainer

STILL = OptimizerConfig(lr=1e-30, weight_decay=0.0)  # an update that no float32 weight notices


@pytest.fixture(scope="module")
def base(small_in, tmp_path_factory) -> Path:
    return Trainer(small_in(tmp_path_factory.mktemp("base"))).train().directory


@pytest.fixture
def tuned(small, base):
    """Makes configurations of runs that begin with `base`; the shape is left to it."""

    def make(**fields) -> TrainerConfig:
        names = TrainerConfig.model_fields.keys() - {"model"}
        values = {name: getattr(small(), name) for name in names}
        return TrainerConfig(**{**values, "init_from": base, "run_name": "tuned", **fields})

    return make


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return sw.load_model(directory, mmap=False).state_dict()


def test_a_run_begins_with_the_weights_of_its_base(tuned, base):
    trainer = Trainer(tuned())
    for name, weight in weights(base).items():
        assert torch.equal(trainer.model.state_dict()[name], weight), name
    assert trainer.model_config.width == 16
    assert trainer.evaluate()["loss"] == pytest.approx(Trainer(tuned()).evaluate()["loss"])


def test_a_run_without_a_base_begins_elsewhere(small, base):
    """Negative control: what the law above compares does differ."""
    fresh = Trainer(small()).model.state_dict()
    assert not all(torch.equal(fresh[name], weight) for name, weight in weights(base).items())


def test_a_checkpoint_is_a_base_too(tuned, base):
    config = tuned(init_from=base / "checkpoint-8")
    assert Trainer(config).train().step > 0


def test_an_update_of_nothing_leaves_the_base(tuned, base):
    """Nothing but updates moves the weights: not resizing, saving, or the choice of the best."""
    run = Trainer(tuned(optimizer=STILL)).train()
    for name, weight in weights(base).items():
        assert torch.equal(weights(run.directory)[name], weight), name


def test_another_shape_beside_a_base_is_refused(tuned):
    with pytest.raises(ConfigError, match="num_layers: 1 -> 2"):
        Trainer(tuned(model=ModelConfig(width=16, num_layers=2, num_heads=2, context_length=8)))


def test_another_tokenizer_is_refused_by_the_first_token_that_differs(tuned):
    with pytest.raises(TokenizerError, match="tokenizer_from="):
        Trainer(tuned(task=Arithmetic(digits=1)))


# -- whose run a folder is -----------------------------------------------------------------------


def test_a_base_may_move_but_not_change(tuned, base, tmp_path):
    Trainer(tuned(steps=6)).train()
    moved = shutil.copytree(base, tmp_path / "moved")
    assert Trainer(tuned(steps=6, init_from=moved)).train().step > 0
    model = sw.load_model(moved, mmap=False)
    with torch.no_grad():
        model.final_norm.weight[0] += 1e-3
    sw.save_model(model, moved)
    with pytest.raises(ConfigError, match=r"init_from \(its weights\): \w{12} -> \w{12}"):
        Trainer(tuned(steps=6, init_from=moved)).train()
    with pytest.raises(ConfigError, match=r"its weights\): \w{12} -> none"):
        Trainer(tuned(steps=6, init_from=None, model=Base(base).config)).train()


def test_a_fingerprint_does_not_depend_on_how_weights_are_cut_into_files(base, tmp_path):
    sw.save_model(sw.load_model(base), tmp_path / "cut", max_shard_bytes=4096)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert Base(tmp_path / "cut").fingerprint == Base(base).fingerprint


# -- real model directories, whose tokenizers have more or fewer tokens than rows ------------------


def qwen(directory: Path, *, rows: int, tied: bool = True, context: int = 128) -> Path:
    """A tiny Qwen2 directory as transformers saves it, in bfloat16, with a chat template."""
    tokenizer = chat_tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
        tie_word_embeddings=tied, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    model.save_pretrained(directory)
    tokenizer.settings = {"chat_template": CHATML}
    tokenizer.save(directory)
    return directory


def chats(path: Path, base: Path, questions: int = 60, **fields) -> Chats:
    rows = [{"data": [f"{n}?", f"{7 * n}"]} for n in range(questions)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Chats(path=path, tokenizer_from=base, **fields)


def test_a_padded_vocabulary_stays_and_the_result_is_float32_with_all_ends(tuned, tmp_path):
    source = qwen(tmp_path / "qwen", rows=512)
    config = tuned(init_from=source, task=chats(tmp_path / "a.jsonl", source), steps=2)
    run = Trainer(config).train()
    model = transformers.AutoModelForCausalLM.from_pretrained(run.directory)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight.shape == (512, 16)
    ends = {chat_tokenizer().id_of(token) for token in ("</s>", "<|im_end|>")}
    assert set(model.generation_config.eos_token_id) == ends
    assert set(model.config.eos_token_id) == ends
    assert model.generation_config.temperature == pytest.approx(0.7)  # the base's own
    assert sw.TextGenerator.load(run.directory).engine.eos_ids == frozenset(ends)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_the_mean_row_and_ties_stay(tmp_path, tied):
    tokens = chat_tokenizer().vocab_size
    source = qwen(tmp_path / "qwen", rows=tokens, tied=tied)
    before = sw.load_model(source, dtype="float32")
    grown = Base(source)
    longer = chat_tokenizer()
    longer.core.add_special_tokens(["<|new|>", "<|newer|>"])
    assert grown.new_ids(longer) == [tokens, tokens + 1]
    model = grown.model(grown.config.changed(vocab_size=tokens + 2))
    for name in ("embed.weight",) if tied else ("embed.weight", "head.weight"):
        rows = model.state_dict()[name]
        assert torch.equal(rows[:tokens], before.state_dict()[name])
        mean = before.state_dict()[name].double().mean(0)
        assert torch.allclose(rows[tokens:].double(), mean.expand(2, -1), atol=1e-8)
    assert (model.head is None) == tied
    ids = torch.arange(8)[None]
    assert torch.allclose(model(ids)[..., :tokens], before(ids), atol=1e-6)  # float32


def test_fewer_tokens_than_the_base_are_refused(tuned, tmp_path):
    source = qwen(tmp_path / "qwen", rows=512)
    task = chats(tmp_path / "a.jsonl", source).changed(tokenizer_from=None)
    with pytest.raises(TokenizerError, match=f"tokenizer_from={source}"):
        Trainer(tuned(init_from=source, task=task))
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="512 and no tokenizer"):
        Trainer(tuned(init_from=source, task=task))


def test_an_example_longer_than_the_context_is_named_before_the_start(tuned, tmp_path):
    source = qwen(tmp_path / "qwen", rows=512, context=40)
    path = tmp_path / "a.jsonl"
    task = chats(path, source)
    with path.open("a") as file:
        file.write("\n" + json.dumps({"data": ["long " * 30, "ok"]}))
    task = Chats(path=path, tokenizer_from=source)
    with pytest.raises(DataError, match=r"'<\|im_start\|>.*context of 40.*\n.*--max-tokens"):
        Trainer(tuned(init_from=source, task=task))
    assert Trainer(tuned(init_from=source, task=task.changed(max_tokens=40))).batch(0)


def test_a_base_elsewhere_on_the_disk_is_the_same_run_for_its_tokenizer_too(tuned, tmp_path):
    source = qwen(tmp_path / "qwen", rows=512)
    task = chats(tmp_path / "a.jsonl", source)
    Trainer(tuned(init_from=source, task=task, steps=2)).train()
    moved = source.rename(tmp_path / "elsewhere")
    config = tuned(init_from=moved, task=task.changed(tokenizer_from=moved), steps=2)
    assert math.isfinite(Trainer(config).train().metrics["loss"])


def test_facts_and_base_are_learnt_on(tuned):
    """What the base has learnt is where the new run begins: its first loss is no higher."""
    ended = Trainer(tuned(task=Facts(facts=16), steps=24)).train()
    records = (ended.directory / "metrics.jsonl").read_text().splitlines()
    first = next(json.loads(line) for line in records if '"validation"' in line)
    assert first["loss"] < math.log(26)
