"""`memsys verify script.py` on scripts of many kinds, each run in processes of its own: outcome, text and status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from built import needs_memsys

from memsys.cli import main

needs_memsys()

ACCUMULATING = """
import argparse, torch
from beside import WIDTH
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
steps = parser.parse_args().steps

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)
    def forward(self, x):
        return self.down(torch.nn.functional.gelu(self.up(x)))

def train():
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.DataLoader(torch.randn(4 * steps, 64, WIDTH), batch_size=2, num_workers=1)
    for number, batch in enumerate(data):
        model(batch).square().mean().backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()

if __name__ == "__main__":
    train()
"""

GAN = """
import torch
from torch import nn
torch.manual_seed(0)
make = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))
judge = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 1))
optimizers = torch.optim.Adam(make.parameters()), torch.optim.Adam(judge.parameters())
loss = nn.BCEWithLogitsLoss()
for _ in range(2):
    fake, real = make(torch.randn(64, 16)), torch.randn(64, 64)
    for optimizer, shown, wanted in ((optimizers[1], fake.detach(), 0.0), (optimizers[0], fake, 1.0)):
        optimizer.zero_grad()
        (loss(judge(shown), torch.full((64, 1), wanted)) + loss(judge(real), torch.ones(64, 1))).backward()
        optimizer.step()
"""

OWN = """
import torch, memsys
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
memsys.offload(model, policy="all", min_bytes=1)
x = torch.randn(64, 64)
print(memsys.verify(model, (x,)))
for _ in range(2):
    memsys.checkpoint(model, x).square().mean().backward()
    with memsys.offload_activations() as session:
        model(x).sum().backward()
    optimizer.step()
print(memsys.stats(model), session.stats())
"""

BROKEN = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(64, 64)).sum().backward()
    if step == 1 and "forward" in vars(model):
        model.weight.grad.view(torch.int32)[2, 3] ^= 1
    optimizer.step()
"""

RANDOM = """
import os, torch
model = torch.nn.Linear(64, 64)
torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(64, 64)).sum().backward()
optimizer.step()
"""

FAILS_MOVED = """
import torch
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(64, 64)).sum().backward()
optimizer.step()
assert "forward" not in vars(model), "who touched my model?"
"""


TRAINER = """
import sys, torch, transformers
transformers.set_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2,
                                                             n_head=2))
rows = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))
args = transformers.TrainingArguments(output_dir=sys.argv[1], max_steps=2, per_device_train_batch_size=2, use_cpu=True,
                                      save_strategy="no", report_to="none", gradient_accumulation_steps=2, seed=3,
                                      dataloader_pin_memory=False)
transformers.Trainer(model, args, train_dataset=[{"input_ids": row, "labels": row} for row in rows]).train()
"""


@pytest.fixture
def verify(tmp_path, monkeypatch, capsys):
    """Runs `memsys verify` on a script of that text; returns (exit status, its JSON)."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "beside.py").write_text("WIDTH = 64\n")

    def run(text: str, *options: str) -> tuple[int, dict]:
        path = Path(tmp_path / "script.py")
        path.write_text(text)
        before, _, after = " ".join(options).partition("--- ")
        words = ["verify", "--json", *before.split(), str(path), *(["--", *after.split()] if after else [])]
        status = main.main(words)
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.slow
def test_a_script_with_arguments_workers_files_beside_it_and_accumulation(verify):
    status, found = verify(ACCUMULATING, "--checksums --device-budget 1MiB --policy auto --- --steps 3")
    assert (status, found["outcome"], found["mode"]) == (0, "equal", "moved"), found["report"]
    assert found["compared"]["step_count"] == 3 and found["compared"]["parameter_count"] == 4
    assert found["moved"]["packed_count"] > 0


@pytest.mark.slow
def test_two_models_that_train_in_turn(verify):
    status, found = verify(GAN, "--steps 3")
    assert (status, found["outcome"]) == (0, "equal"), found["report"]
    assert found["compared"]["step_count"] == 3 and found["compared"]["parameter_count"] == 8


@pytest.mark.slow
def test_a_hugging_face_trainer(verify, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    status, found = verify(TRAINER, f"--- {tmp_path}/out")
    assert (status, found["outcome"]) == (0, "equal"), found["report"]
    assert found["compared"]["step_count"] == 2 and found["compared"]["parameter_count"] > 20
    assert found["moved"]["packed_count"] > 0


@pytest.mark.slow
def test_a_script_that_calls_memsys_itself(verify):
    status, found = verify(OWN)
    assert (status, found["outcome"], found["mode"]) == (0, "equal", "own"), found["report"]
    assert found["moved"]["packed_count"] > 0
    status, found = verify(OWN, "--policy auto")
    assert (status, found["outcome"]) == (2, "options_ignored") and "--policy" in found["report"]


@pytest.mark.slow
def test_the_step_the_parameter_and_the_byte_are_named(verify):
    status, found = verify(BROKEN)
    assert (status, found["outcome"]) == (1, "different")
    difference = found["compared"]["difference"]
    assert (difference["step"], difference["parameter"]) == (1, "weight")
    assert difference["byte"]["offset"] == (2 * 64 + 3) * 4 and difference["byte"]["differing_count"] == 1
    assert "step 1, weight" in found["report"] and f"byte {(2 * 64 + 3) * 4} of 16384" in found["report"]


@pytest.mark.slow
def test_a_script_that_does_not_repeat_itself(verify):
    status, found = verify(RANDOM)
    assert (status, found["outcome"]) == (2, "not_repeatable"), found["report"]


@pytest.mark.slow
def test_a_script_that_fails_with_memsys_alone(verify):
    status, found = verify(FAILS_MOVED)
    assert (status, found["outcome"]) == (1, "failed_with_memsys")
    assert "who touched my model?" in found["report"]


@pytest.mark.parametrize(
    ("text", "outcome", "words"),
    [
        ("import torch\n", "no_step", "no optimizer step"),
        ("import sys\nsys.exit('no such data')\n", "script_failed", "no such data"),
        ("import os\nos._exit(0)\n", "script_failed", "os._exit"),
    ],
)
def test_nothing_to_compare(text, outcome, words, verify):
    status, found = verify(text)
    assert (status, found["outcome"]) == (2, outcome)
    assert words in found["report"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "no-such.py"], "no file no-such.py"),
        (["verify", __file__, "--seq", "5"], "--seq is for the built-in GPT"),
        (["verify", "--steps", "5"], "--steps is for a script"),
    ],
)
def test_options_that_make_no_sense(words, told, capsys):
    assert main.main(words) == 2
    assert told in capsys.readouterr().err
