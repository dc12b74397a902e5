"""Hugging Face models streamed: adapters of peft, checkpointing, generation and saving, equal to the resident model."""

import copy
import itertools
import warnings
from pathlib import Path

import pytest
import torch
from streamed import same

import memsys

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

VOCABULARY, LAYERS, WINDOW = 96, 8, 3
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
          "vocab_size": VOCABULARY, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0}  # fmt: skip
KINDS = {
    "llama": (lambda: transformers.LlamaConfig(**_SMALL), ["q_proj", "v_proj"]),
    "llama-tied": (lambda: transformers.LlamaConfig(**_SMALL, tie_word_embeddings=True), ["up_proj"]),
    "gpt2": (lambda: transformers.GPT2Config(**_GPT2), ["c_attn"]),
    "mixtral": (lambda: transformers.MixtralConfig(**_SMALL, num_local_experts=4), ["q_proj", "o_proj"]),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def made(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(KINDS[kind][0]()).to(dtype)


def empty(kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(KINDS[kind][0]())


def adapted(model: torch.nn.Module, kind: str, is_checkpointed: bool = False) -> torch.nn.Module:
    """The model with seeded adapters, in training."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, target_modules=KINDS[kind][1], init_lora_weights=False, fan_in_fan_out=kind == "gpt2")
    model = peft.get_peft_model(model, config)
    if is_checkpointed:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return model.train()


def tokens(seed: int = 3) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(seed))


def step(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(4)  # of dropout
    loss = model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return loss.detach().clone(), gradients


def packed(model: torch.nn.Module, folder: Path) -> str:
    path = str(folder / "packed.safetensors")
    memsys.pack_weights(model, path)
    return path


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_adapters_train_bit_for_bit(kind: str, is_checkpointed: bool, tmp_path: Path) -> None:
    base = made(kind)
    path = packed(base, tmp_path)
    reference = adapted(base, kind, is_checkpointed)
    wanted = [step(reference) for _ in range(3)]
    model = adapted(memsys.stream(empty(kind), path, window=WINDOW), kind, is_checkpointed)
    counts = [0]
    for index in range(3):
        assert same(step(model), wanted[index])
        counts.append(memsys.stream_stats(model).load_count)
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps == [2 * LAYERS - WINDOW, 2 * (LAYERS - WINDOW), 2 * (LAYERS - WINDOW)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("source", ["packed", "plain", "folder"])
def test_adapters_that_are_there_already(source: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = made("llama", dtype)
    if source == "packed":
        path = packed(base, tmp_path)
    else:
        base.save_pretrained(tmp_path, max_shard_size="200KB" if source == "folder" else "1GB")
        path = str(tmp_path if source == "folder" else tmp_path / "model.safetensors")
    wanted = step(adapted(copy.deepcopy(base), "llama"))
    model = memsys.stream(adapted(base, "llama"), path, window=1)
    assert same(step(model), wanted)
    assert same(step(model), wanted)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_generation_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    base = made(kind).eval()
    model = memsys.stream(empty(kind), packed(base, tmp_path), window=WINDOW).eval()
    given = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones(2, 4, dtype=torch.int64),
             "pad_token_id": 0}  # fmt: skip
    wanted = base.generate(tokens()[:, :4], **given)
    before = memsys.stream_stats(model).load_count
    assert torch.equal(model.generate(tokens()[:, :4], **given), wanted)
    passes = wanted.shape[1] - 4
    assert memsys.stream_stats(model).load_count - before <= LAYERS + (passes - 1) * (LAYERS - WINDOW + 1)


def test_saving_reads_the_file_and_adapters_save_alone(tmp_path: Path) -> None:
    base = made("llama")
    streamed = memsys.stream(empty("llama"), packed(base, tmp_path), window=WINDOW)
    streamed.save_pretrained(tmp_path / "full")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    wanted = base.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    model = adapted(streamed, "llama")
    read = memsys.stream_stats(model).read_bytes
    model.save_pretrained(tmp_path / "adapter")
    assert memsys.stream_stats(model).read_bytes == read  # no base weight was read for it
    other = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter", is_trainable=True).train()
    assert same(step(other), step(model))


def test_an_optimizer_trains_the_adapters_alone(tmp_path: Path) -> None:
    base = made("llama")
    path = packed(base, tmp_path)
    found = []
    for model in (adapted(base, "llama"), adapted(memsys.stream(empty("llama"), path, window=2), "llama")):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(4):
            torch.manual_seed(4)
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([value.detach().clone() for name, value in model.named_parameters() if "lora" in name])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_buffers_that_no_file_holds_are_made_again(tmp_path: Path) -> None:
    base = made("llama")
    model = memsys.stream(empty("llama"), packed(base, tmp_path), window=1)
    wanted = dict(base.named_buffers())
    assert wanted
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, wanted[name])
    broken = empty("llama")
    broken.model.rotary_emb.config = None
    with pytest.raises(memsys.InputError, match=r"rotary_emb\.inv_freq"):
        memsys.stream(broken, packed(base, tmp_path))


def test_weights_used_by_their_module_s_parent(tmp_path: Path) -> None:
    """MultiheadAttention reads out_proj.weight without calling out_proj; a checkpoint computes the layer again."""

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True) for _ in range(4)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

    torch.manual_seed(1)
    base = Encoder()
    x = torch.randn(2, 8, 64)

    def run(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(5)
        value = x.clone().requires_grad_()
        loss = model(value).square().mean()
        loss.backward()
        return loss.detach().clone(), {"x": value.grad}

    for name, parameter in base.named_parameters():
        parameter.requires_grad_(parameter.dim() < 2 and "norm" in name)
    path = packed(base, tmp_path)
    wanted = run(copy.deepcopy(base))
    model = memsys.stream(base, path, window=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(run(model), wanted)
        assert same(run(model), wanted)
