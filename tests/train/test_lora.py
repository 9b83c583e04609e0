"""LoRA: merged is unmerged, PEFT agrees, and only what is to be learnt moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.chats import CHATML, chat_tokenizer

import stepwell as sw
from stepwell.config import write_yaml
from stepwell.errors import ConfigError, WeightsError
from stepwell.storage.sealed import sha256
from stepwell.tasks import Chats
from stepwell.train import checkpoint
from stepwell.train.config import LoraConfig, OptimizerConfig, TrainerConfig
from stepwell.train.log import TIME_FIELDS
from stepwell.train.lora import learnt, num_trained, target_names
from stepwell.train.trainer import Trainer

SHAPE = {"vocab_size": 330, "width": 16, "num_heads": 2, "num_layers": 2, "context_length": 128}
FAMILIES = {
    "qwen2": sw.ModelConfig(**SHAPE, family="qwen2", qkv_bias=True, num_kv_heads=1),
    "untied": sw.ModelConfig(**SHAPE, tie_embeddings=False),
    "gpt2": sw.ModelConfig(
        **SHAPE, family="gpt2", norm="layer", position="learned", activation="gelu_tanh",
        gated_mlp=False, qkv_bias=True, output_bias=True, mlp_bias=True, norm_eps=1e-5,
    ),
}  # fmt: skip
CLOSE = 1e-5  # float32


def base_of(directory: Path, shape: sw.ModelConfig) -> Path:
    """A model with random weights and the tokens of `chat_tokenizer`."""
    tokenizer = chat_tokenizer()
    model = sw.Transformer(shape.changed(vocab_size=tokenizer.vocab_size))
    model.initialize(3)
    sw.save_model(model, directory)
    tokenizer.settings = {"chat_template": CHATML}
    tokenizer.save(directory)
    return directory


def task_of(path: Path, tokenizer_from: Path) -> Chats:
    rows = [{"data": [f"{n}?", f"{7 * n}"]} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Chats(path=path, tokenizer_from=tokenizer_from)


def config_of(
    folder: Path, base: Path, *, tokenizer: Path | None = None, **fields
) -> TrainerConfig:
    values = {
        "init_from": base, "task": task_of(folder / "chats.jsonl", tokenizer or base), "steps": 6,
        "batch_size": 4, "optimizer": OptimizerConfig(lr=1e-2), "evaluate_every": 3,
        "evaluation_batches": 1, "samples": 1, "save_every": 3, "log_every": 2, "run_name": "run",
        "runs": folder / "runs", "threads": 1, "device": "cpu", "lora": LoraConfig(rank=4),
    }  # fmt: skip
    return TrainerConfig(**{**values, **fields})


def grown(folder: Path, base: Path) -> Path:
    """A tokenizer with two tokens more than that of a base."""
    tokenizer = chat_tokenizer()
    tokenizer.core.add_special_tokens(["<|new|>", "<|newer|>"])
    tokenizer.settings = {"chat_template": CHATML.replace("<|im_start|>", "<|new|>")}
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def tuned(request, tmp_path_factory):
    """A trainer after its run, of a base that two tokens were new to, and the base."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_of(folder / "base", FAMILIES[request.param])
    config = config_of(folder, base, tokenizer=grown(folder / "tokens", base))
    trainer = Trainer(config)
    trainer.train()
    return trainer, base


def ids(model: sw.Transformer) -> torch.Tensor:
    """Two texts, with the newest tokens in them."""
    size = model.config.vocab_size
    made = torch.arange(40).reshape(2, 20) * 8 % size
    made[:, 5] = torch.tensor([size - 1, size - 2])
    return made


def logits_of_peft(base: Path, adapter: Path, tokens: torch.Tensor, num_rows: int) -> torch.Tensor:
    """What the PEFT library computes with the base and the adapter."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that library, about itself
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(num_rows, mean_resizing=False)
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return model(tokens).logits


def test_merged_is_unmerged(tuned):
    trainer, _ = tuned
    trainer.model.eval()
    plain = trainer.plain_model
    with torch.no_grad():
        unmerged, merged = trainer.model(ids(plain)), plain(ids(plain))
    assert torch.allclose(unmerged, merged, atol=CLOSE)
    without = trainer.base.model(trainer.model_config)
    assert not torch.allclose(unmerged, without(ids(plain)), atol=1e-2), "nothing was learnt"


def test_peft_computes_what_we_merged(tuned):
    trainer, base = tuned
    published = sw.load_model(trainer.config.directory)
    tokens = ids(published)
    theirs = logits_of_peft(
        base, trainer.config.directory / "adapter", tokens, published.config.vocab_size
    )
    assert torch.allclose(theirs, published(tokens), atol=CLOSE)


def test_an_adapter_is_merged_into_what_the_published_model_is(tuned):
    trainer, base = tuned
    directory = trainer.config.directory
    merged = sw.merge_adapter(sw.load_model(base), directory / "adapter")
    published = sw.load_model(directory)
    for name, weight in published.state_dict().items():
        assert torch.allclose(merged.state_dict()[name], weight, atol=1e-6), name


def test_only_what_is_learnt_moves(tuned):
    """All else of the published model is the base's, to the bit."""
    trainer, base = tuned
    before, after = sw.load_model(base), sw.load_model(trainer.config.directory)
    adapted = {f"{name}.weight" for name in target_names(LoraConfig(), before.config)}
    rows = {"embed.weight", "head.weight"}
    for name, weight in before.state_dict().items():
        now = after.state_dict()[name]
        if name in rows:
            assert torch.equal(now[: len(weight)], weight), name
        else:
            assert torch.equal(now, weight) == (name not in adapted), name
    new = after.embed.weight[before.config.vocab_size :]
    assert len(new) == 2
    assert not torch.equal(new[0], new[1]), "rows of new tokens are learnt"


def test_what_is_trained_is_counted_without_a_model(tuned):
    trainer, _ = tuned
    parameters = [each for each in trainer.model.parameters() if each.requires_grad]
    counted = sum(each.numel() for each in parameters)
    assert num_trained(LoraConfig(rank=4), trainer.model_config, 2) == counted
    assert trainer.plan().trained_parameters == counted
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(parameters)


def test_a_checkpoint_is_a_model_that_can_be_loaded(tuned):
    trainer, _ = tuned
    merged = sw.load_model(trainer.config.directory / "checkpoint-6").state_dict()
    for name, weight in trainer.plain_model.state_dict().items():
        assert torch.equal(merged[name], weight), name


# -- resuming --------------------------------------------------------------------------------------


def outcome(directory: Path) -> object:
    records = [
        {key: value for key, value in record.items() if key not in TIME_FIELDS}
        for record in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    ]
    files = ["model.safetensors", "adapter/adapter_model.safetensors"]
    files += [f"checkpoint-6/{name}.safetensors" for name in ("trained", "optimizer", "model")]
    return records, [sha256(directory / name) for name in files]


@pytest.fixture
def config(tmp_path):
    base = base_of(tmp_path / "base", FAMILIES["qwen2"])
    tokenizer = grown(tmp_path / "tokens", base)
    return config_of(tmp_path, base, tokenizer=tokenizer, lora=LoraConfig(rank=4, dropout=0.25))


SCRIPT = """
import os, signal
from stepwell.config import read_yaml
from stepwell.train.config import TrainerConfig
from stepwell.train.trainer import Trainer
import stepwell.tasks

class Killed(Trainer):
    calls = 0

    def loss(self, batch):
        self.calls += 1
        if self.calls == {call}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch)

Killed(TrainerConfig.parse(read_yaml({path!r}))).train()
"""


def killed(config: TrainerConfig, folder: Path, call: int) -> None:
    """Trains in a process of its own that is killed, really, at a call of its loss."""
    path = folder / "config.yaml"
    write_yaml(path, config.plain())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(path=str(path), call=call)],
        env={**os.environ, "PYTHONPATH": str(Path(sw.__file__).parents[1])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def interrupted(config: TrainerConfig, step: int) -> None:
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).train(stop_requested=lambda: next(calls) == step)


def test_a_killed_run_ends_in_the_same_bits(config, tmp_path):
    whole = Trainer(config.changed(runs=tmp_path / "whole")).train().directory
    killed(config, tmp_path, 5)
    assert not (config.directory / "checkpoint-6").exists()
    assert outcome(Trainer(config).train().directory) == outcome(whole)


def test_a_resume_that_takes_the_merged_weights_is_seen(config, tmp_path, monkeypatch):
    """Negative control: without what was learnt, the run does not go on where it stopped."""
    whole = Trainer(config.changed(runs=tmp_path / "whole")).train().directory
    interrupted(config, 4)
    monkeypatch.setattr("stepwell.train.loop.read_weights", lambda path, model: None)
    assert outcome(Trainer(config).train().directory) != outcome(whole)
    assert (whole / "checkpoint-6" / checkpoint.TRAINED).stat().st_size < 40_000


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("qwen2", ("q_proj", "v_proj"), ["attention.q_proj", "attention.v_proj"]),
        ("qwen2", ("mlp.gate_proj",), ["mlp.gate"]),
        ("gpt2", ("c_attn",), [f"attention.{name}_proj" for name in "qkv"]),
        ("gpt2", ("c_proj",), ["attention.o_proj", "mlp.down"]),
        ("gpt2", ("mlp.c_proj",), ["mlp.down"]),
    ],
)
def test_targets_are_called_as_the_family_calls_them(family, targets, expected):
    found = target_names(LoraConfig(targets=targets), FAMILIES[family])
    assert found == [f"blocks.{layer}.{name}" for layer in range(2) for name in expected]


def test_gpt2s_fused_matrix_takes_an_adapter_of_a_part_of_it(tmp_path):
    """PEFT sees one matrix; what the parts that are not adapted give stays as it was."""
    base = base_of(tmp_path / "base", FAMILIES["gpt2"])
    config = config_of(tmp_path, base, lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    directory = Trainer(config).train().directory
    published = sw.load_model(directory)
    theirs = logits_of_peft(
        base, directory / "adapter", ids(published), published.config.vocab_size
    )
    assert torch.allclose(theirs, published(ids(published)), atol=CLOSE)
    values = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert values["rank_pattern"] == {"attn.c_attn": 4}


def test_a_target_that_there_is_not_is_named_with_the_nearest(tmp_path):
    base = base_of(tmp_path / "base", FAMILIES["qwen2"])
    config = config_of(tmp_path, base, lora=LoraConfig(targets=("q_prj",)))
    with pytest.raises(ConfigError, match="'q_proj'"):
        Trainer(config).plan()


def test_lora_without_a_base_is_refused(small):
    with pytest.raises(ConfigError, match="init_from"):
        small(lora=LoraConfig())


# -- adapters from elsewhere -----------------------------------------------------------------------


def test_a_foreign_adapter_is_merged_as_peft_merges_it(tmp_path):
    import peft

    base = base_of(tmp_path / "base", FAMILIES["untied"])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        settings = peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"],
            rank_pattern={"down_proj": 2}, use_rslora=True, init_lora_weights=False,
        )  # fmt: skip
        made = peft.get_peft_model(model, settings)
        made.save_pretrained(tmp_path / "adapter")
        theirs = made.merge_and_unload().eval()
    ours = sw.merge_adapter(sw.load_model(base), tmp_path / "adapter")
    tokens = ids(ours)
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=CLOSE)
        assert not torch.allclose(sw.load_model(base)(tokens), ours(tokens), atol=1e-2)


@pytest.fixture
def adapter(tmp_path):
    """A small adapter of our own, to be damaged; and its base."""
    base = base_of(tmp_path / "base", FAMILIES["qwen2"])
    config = config_of(tmp_path, base, lora=LoraConfig(rank=2, targets=("q_proj",)), steps=1)
    return Trainer(config).train().directory / "adapter", sw.load_model(base)


def changed(directory: Path, **values) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "kind", "match"),
    [
        ({"peft_type": "IA3"}, ConfigError, "IA3"),
        ({"use_dora": True}, ConfigError, "use_dora"),
        ({"bias": "all"}, ConfigError, "bias"),
        ({"init_lora_weights": "pissa"}, ConfigError, "pissa"),
        ({"use_what_comes_next": True}, ConfigError, "use_what_comes_next"),
        ({"alpha_pattern": {"(a+)+$": 3}}, ConfigError, "expected a module"),
        ({"r": 4}, WeightsError, r"\[2, 16\], expected \[4, 16\]"),
        ({"r": "many"}, ConfigError, "'many'"),
        ({"rank_pattern": {"q_proj": 3}}, WeightsError, r"\[2, 16\], expected \[3, 16\]"),
    ],
)
def test_what_an_adapter_says_is_honoured_or_refused(adapter, values, kind, match):
    directory, model = adapter
    changed(directory, **values)
    with pytest.raises(kind, match=match):
        sw.merge_adapter(model, directory)


def test_an_adapter_of_another_model_is_refused_by_the_tensor_that_does_not_fit(adapter):
    directory, model = adapter
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    wider = sw.Transformer(model.config.resized(width=32))
    with pytest.raises(WeightsError, match=r"\[2, 16\], expected \[2, 32\]"):
        sw.merge_adapter(wider, directory)
    save_file({key.replace("q_proj", "x_proj"): each for key, each in tensors.items()}, path)
    with pytest.raises(WeightsError, match=r"x_proj.*which the model lacks.*_proj"):
        sw.merge_adapter(model, directory)
    save_file({key: each for key, each in tensors.items() if "lora_A" in key}, path)
    with pytest.raises(WeightsError, match=r"lacks .*lora_B"):
        sw.merge_adapter(model, directory)


@pytest.mark.parametrize("ids", [[2**40, 2**41], [-1, 0], ["1", 2], [700, 701], [1]])
def test_rows_of_tokens_that_cannot_be_are_refused(adapter, ids):
    directory, model = adapter
    path = directory / "adapter_model.safetensors"
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"}
    save_file({**load_file(path), rows.pop(): torch.ones(2, 16)}, path)
    changed(directory, trainable_token_indices={"embed_tokens": ids})
    with pytest.raises(WeightsError, match=r"follow on none|\[2, 16\], expected"):
        sw.merge_adapter(model, directory)


def test_a_pickle_is_never_opened(adapter):
    directory, model = adapter
    (directory / "adapter_model.safetensors").unlink()
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match="could run code"):
        sw.merge_adapter(model, directory)


def test_learning_begins_at_the_base(tmp_path):
    """B is 0: before the first step there is no change at all."""
    base = base_of(tmp_path / "base", FAMILIES["qwen2"])
    trainer = Trainer(config_of(tmp_path, base))
    assert all(not change.b.any() for change in learnt(trainer.model).matrices.values())
    assert torch.equal(trainer.model(ids(trainer.model)), sw.load_model(base)(ids(trainer.model)))
