"""What streaming is for: a budget that holds, the page cache counted, and models larger than the memory there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import memsys
from memsys.budget import is_memory_filesystem

# In a fresh process: fine-tune by adapters, and tell the peak of resident memory since before the model.
TRAIN = """
import gc, json, sys
import torch
import stream_worker
from memsys.cli.peak import PeakGrowth
import memsys

mode, path, layers, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
torch.randn(512, 512) @ torch.randn(512, 512)  # threads and their memory are there before
from safetensors import safe_open
growth = PeakGrowth(torch.device("cpu"))
model = stream_worker.build(mode, path, layers, width, torch.float32, "")
x = torch.randn(1, 8, width)
losses = []
for _ in range(3):
    loss = model(x)
    loss.backward()
    losses.append(loss.item())
    model.zero_grad()
    if mode == "memsys-3":
        again = memsys.stream_stats(model).as_dict()
found = {"growth": growth.growth_bytes(), "cached": stream_worker.cached_bytes(path), "losses": losses}
if mode == "memsys-3":
    found["stats"] = again
print(json.dumps(found))
"""
# Under a limit on the process's own memory that the model does not fit in: pack, fine-tune and generate.
LARGER = """
import json, os, resource, sys
import torch, transformers, peft
import memsys

folder, packed, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = transformers.AutoConfig.from_pretrained(folder)
ids = torch.randint(3, 90, (1, 8), generator=torch.Generator().manual_seed(1))
torch.randn(512, 512) @ torch.randn(512, 512)
data = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + room, data + room))
found = {"limit": room}
try:
    whole = transformers.AutoModelForCausalLM.from_config(config)
    found["resident"] = "fits"
    del whole
except (MemoryError, RuntimeError):
    found["resident"] = "does not fit"
memsys.pack_weights(folder, packed)
with torch.device("meta"):
    model = transformers.AutoModelForCausalLM.from_config(config)
memsys.stream(model, packed, window=3)
model.eval()
found["tokens"] = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0,
                                 attention_mask=torch.ones_like(ids)).tolist()
torch.manual_seed(2)
model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).train()
loss = model(input_ids=ids, labels=ids).loss
loss.backward()
found["loss"] = loss.item()
found["gradient"] = [value.grad.double().sum().item() for value in model.parameters() if value.grad is not None]
print(json.dumps(found))
"""


def child(script: str, *arguments: object) -> dict:
    where = Path(memsys.__file__).parents[1]
    paths = [str(where), str(Path(__file__).parents[3] / "benchmarks")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", script, *map(str, arguments)],
                          env=environment, capture_output=True, text=True, timeout=170)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_budget_holds_with_the_page_cache(tmp_path: Path) -> None:
    """Peak memory of the streamed run, less that of the resident run without its weights, plus the file's pages in the
    page cache: at most the window, plus 5 %."""
    if is_memory_filesystem(tmp_path):
        pytest.skip("the temporary folder is in memory: a file there is always in the page cache")
    import stream_worker
    import torch

    layers, width = 8, 768
    weights = dict(stream_worker.frozen_weights(layers, width, torch.float32))
    path = str(tmp_path / "frozen.safetensors")
    memsys.pack_weights(weights, path)
    matrices = sum(value.nbytes for value in weights.values() if value.dim() > 1)
    resident = child(TRAIN, "resident", path, layers, width)
    os.sync()
    streamed = child(TRAIN, "memsys-3", path, layers, width)
    assert streamed["losses"] == resident["losses"]
    stats = streamed["stats"]
    assert stats["peak_resident_bytes"] <= 3 * matrices / layers * 1.01
    without_weights = resident["growth"] - matrices
    used = streamed["growth"] - without_weights
    assert used <= 1.05 * stats["peak_resident_bytes"], (used, stats, resident)


@pytest.mark.slow
def test_model_larger_than_the_memory_there_is(tmp_path: Path) -> None:
    """Packed from shards, generated from and fine-tuned under RLIMIT_DATA; equal to the run without a limit."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    import torch

    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=16, vocab_size=96, num_attention_heads=8,
        num_key_value_heads=8, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(value.nbytes for value in model.parameters())
    model.save_pretrained(tmp_path / "whole", max_shard_size="30MB")
    del model
    room = total // 2
    limited = child(LARGER, tmp_path / "whole", tmp_path / "a.safetensors", room)
    assert limited["resident"] == "does not fit"
    free = child(LARGER, tmp_path / "whole", tmp_path / "b.safetensors", 8 << 30)
    assert free["resident"] == "fits"
    assert [limited[key] for key in ("tokens", "loss", "gradient")] == [
        free[key] for key in ("tokens", "loss", "gradient")
    ]
