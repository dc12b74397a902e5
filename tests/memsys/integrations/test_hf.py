"""MemsysCallback in a real Trainer: the same losses, the numbers in the logs, and the model as it was."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import memsys  # noqa: E402
from memsys import _tensor  # noqa: E402
from memsys.integrations.hf import MemsysCallback  # noqa: E402

# transformers renamed the option.
_FIELDS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"
VOCABULARY, LENGTH, STEPS = 64, 32, 3


def tiny(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(VOCABULARY, (STEPS * 2, LENGTH), generator=generator)
    return [{"input_ids": text, "labels": text} for text in texts]


def trainer_of(model, folder, callbacks=(), **options) -> transformers.Trainer:
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, logging_steps=1, use_cpu=True, seed=3,
        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    return transformers.Trainer(model, args, train_dataset=rows(), callbacks=list(callbacks))


def losses_of(trainer: transformers.Trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{}, {CHECKPOINTING: True}, {"gradient_accumulation_steps": 2}])
def test_training_is_the_same_and_logged(kind, options, tmp_path):
    model = tiny(kind)
    twin = copy.deepcopy(model)
    plain = trainer_of(model, tmp_path, **options)
    plain.train()
    callback = MemsysCallback(policy="all", min_bytes=1, spill_dir=tmp_path)
    trainer = trainer_of(twin, tmp_path, [callback], **options)
    trainer.train()

    assert len(losses_of(plain)) == STEPS
    assert losses_of(trainer) == losses_of(plain)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    logs = trainer.state.log_history
    sent = [log["memsys_out_bytes"] for log in logs]
    assert sent[0] > 0 and sent[:STEPS] == sorted(set(sent[:STEPS])), "each step moves more"
    assert all(log["memsys_in_bytes"] > 0 and log["memsys_stall_ms"] >= 0 for log in logs)
    assert "forward" not in vars(twin)
    with pytest.raises(memsys.InputError, match="not offloaded"):
        memsys.stats(twin)
    assert _tensor.top_hooks() is None


class Seen(transformers.TrainerCallback):
    """A reporter: keeps what it is sent."""

    def __init__(self) -> None:
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_callbacks_after_it_see_the_numbers(tmp_path):
    seen = Seen()
    trainer_of(tiny("gpt2"), tmp_path, [MemsysCallback(spill_dir=tmp_path), seen]).train()
    assert len(seen.logs) > STEPS and all("memsys_out_bytes" in log for log in seen.logs)


class Break(transformers.TrainerCallback):
    """An exception in the midst of training."""

    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_an_exception_restores_the_model(tmp_path):
    model = tiny("gpt2")
    with pytest.raises(KeyboardInterrupt), MemsysCallback(spill_dir=tmp_path) as callback:
        trainer_of(model, tmp_path, [callback, Break()]).train()
    assert "forward" not in vars(model)

    callback = MemsysCallback(spill_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, tmp_path, [callback, Break()]).train()
    assert "forward" in vars(model)
    trainer_of(model, tmp_path, [callback]).train()
    assert "forward" not in vars(model)


def test_options_are_those_of_offload(tmp_path):
    with pytest.raises(memsys.InputError, match="policy"):
        trainer_of(tiny("gpt2"), tmp_path, [MemsysCallback(policy="some")]).train()
    with pytest.raises(TypeError, match="colour"):
        trainer_of(tiny("gpt2"), tmp_path, [MemsysCallback(colour=1)]).train()
    with pytest.raises(memsys.InputError, match="model"):
        MemsysCallback().on_train_begin(None, None, None)


def test_memsys_alone_imports_no_transformers():
    code = "import sys, memsys; sys.exit('transformers' in sys.modules or 'accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
