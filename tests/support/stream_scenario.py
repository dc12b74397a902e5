"""One seed, one scenario: a small program of training steps on several streams, drawn from the seed, run with memsys's
hooks on the simulated accelerator, its gradients compared bit for bit with those of the same program without either.

A program is a list of actions of which any may be left out, so that a failing one can be shrunk to the fewest that
still fail (shrink.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from simulated_torch import SimulatedTorch
from torch import Tensor, nn

import memsys
from memsys.activations.ahead import PrefetchWindow
from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE
from memsys.activations.offload import session_of
from memsys.runtimes import override_runtime

WIDTH, ROWS = 8, 4
HOST_BYTES = 2 << 20  # a small slab is quickly made
WINDOWS = (400, 2_000, 1 << 20)


class Action(NamedTuple):
    """kind: forward, backward, again (backward of a kept graph), partial (some gradients only, then the graph goes),
    both (one backward of two graphs), drop, update (of the parameters), breathe (tasks run)."""

    kind: str
    slot: int = 0
    stream: int = 0  # index; the caller's in backward, and the first block's in forward
    number: int = 0


@dataclass(frozen=True)
class Program:
    seed: int  # of the schedule and the policy
    blocks: tuple[tuple[str, int], ...] = ()  # kind, stream index
    actions: tuple[Action, ...] = ()
    window_bytes: int = WINDOWS[-1]
    breath: int = 8
    places: str = "mixed"
    # Whether the program tells the allocator what it uses on another stream, or lets the graph keep it until backward.
    is_told: bool = True

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, window of {self.window_bytes} bytes, breath {self.breath}, "
            f"places {self.places}, {'told' if self.is_told else 'kept'}"
        ]
        lines += [f"  block {place}: {kind} on stream {stream}" for place, (kind, stream) in enumerate(self.blocks)]
        lines += [f"  {a.kind} slot {a.slot} stream {a.stream} number {a.number}" for a in self.actions]
        return "\n".join(lines)


def draw(seed: int) -> Program:
    """The program of a seed: one to three steps of one to five blocks on up to three streams."""
    chance = random.Random(seed ^ 0x5EED)
    streams = chance.choice((1, 2, 2, 3))
    kinds = ("mlp", "views", "product", "norm")
    blocks = tuple((chance.choice(kinds), chance.randrange(streams)) for _ in range(chance.randint(1, 5)))
    actions: list[Action] = []
    for _ in range(chance.randint(1, 3)):
        both = chance.random() < 0.4
        for slot in range(1 + both):
            actions.append(Action("forward", slot, chance.randrange(streams), chance.randrange(100)))
            if chance.random() < 0.3:
                actions.append(Action("breathe", number=chance.randint(1, 40)))
        ends = chance.sample(range(1 + both), 1 + both)
        if both and chance.random() < 0.25:
            ends = []
            actions.append(Action("both", 0, chance.randrange(streams)))
        for slot in ends:
            kind = chance.choice(("backward", "backward", "backward", "again", "partial", "drop"))
            actions.append(Action(kind, slot, chance.randrange(streams)))
        if chance.random() < 0.5:
            actions.append(Action("update", stream=chance.randrange(streams)))
    places = chance.choice(("mixed", "mixed", "host", "file", "made"))
    breath = chance.choice((0, 3, 8, 30))
    return Program(seed, blocks, tuple(actions), chance.choice(WINDOWS), breath, places, chance.random() < 0.5)


class Block(nn.Module):
    """What layers commonly save: inputs, results, products, statistics, aliases of one storage with other strides."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mlp":
            return x + self.down(F.gelu(self.up(x))[:, ::3])
        if self.kind == "views":  # one storage, saved as slices and transposed
            q, k, v = self.up(x).view(ROWS, 3, WIDTH).unbind(1)
            return x + (q @ k.t()).softmax(-1) @ v.view(ROWS, WIDTH) + self.down(x.t().sin().t())
        if self.kind == "product":  # square: only the strides tell a tensor from its transpose
            h = self.up(x)[:, :ROWS].contiguous()
            return x + self.down(torch.cat((h * h.t(), h.t() @ h), 1))
        return x + self.down(self.norm(x) * torch.sigmoid(x))


class World:
    """Where a program runs: without anything (here), or on the simulation."""

    streams: tuple[int, ...] = (0, 0, 0)

    def __init__(self, program: Program) -> None:
        self.program = program
        torch.manual_seed(program.seed % 7)
        self.model = Chain(self, program)
        self.slots: dict[int, Tensor] = {}
        self.results: list[Tensor | None] = []
        self.stream = 0

    def go(self, index: int) -> None:
        """What follows runs on that stream, after what the one before has done."""

    def settle(self) -> None:
        """Before a graph goes without its backward: what it kept is done with, on every stream."""
        before = self.stream
        for index in (0, 1, 2, 0, 1, 2) if not self.program.is_told else ():
            self.go(index)
        self.go(before)

    def use(self, tensor: Tensor) -> None:
        """What a program says of a tensor that another stream made."""

    def breathe(self, count: int) -> None: ...

    def run(self) -> list[Tensor | None]:
        for action in self.program.actions:
            if action.kind == "forward" and action.slot in self.slots:
                self.settle()
                del self.slots[action.slot]
            self.go(action.stream)
            self._act(action)
        self.settle()
        self.slots.clear()
        return self.results

    def _act(self, action: Action) -> None:
        if action.kind == "forward":
            generator = torch.Generator().manual_seed(action.number)
            x = torch.randn(ROWS, WIDTH, generator=generator) * 1.0
            self.slots[action.slot] = self.model(x)
        elif action.kind == "breathe":
            self.breathe(action.number)
        elif action.kind == "update":
            self.settle()
            self.slots.clear()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        self.use(parameter.grad)
                        parameter.sub_(parameter.grad, alpha=0.01)
        else:
            self._end(action)

    def _end(self, action: Action) -> None:
        out = self.slots.pop(action.slot, None)
        if out is None or action.kind == "drop":
            self.settle()
            return
        self.go(self.program.blocks[-1][1] if self.program.blocks else 0)
        self.use(out)
        if action.kind == "both" and 1 in self.slots:
            other = self.slots.pop(1)
            self.use(other)
            out = out + other
        loss = out.square().mean()
        if action.kind == "partial":
            last = list(self.model.parameters())[-6:]
            found = torch.autograd.grad(loss, last, allow_unused=True)
            self.settle()
            self.keep(found)
        else:
            self.model.zero_grad()
            loss.backward(retain_graph=action.kind == "again")
            if action.kind == "again":
                loss.backward()
            self.keep([parameter.grad for parameter in self.model.parameters()])
        self.go(action.stream)

    def keep(self, gradients: Sequence[Tensor | None]) -> None:
        """A copy of them, to be compared."""
        for gradient in gradients:
            if gradient is not None:
                self.use(gradient)
            self.results.append(None if gradient is None else gradient * 1.0)


class Hop(torch.autograd.Function):
    """Goes on with a tensor on another stream; its gradient comes back to the first, as autograd has it on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World, index: int) -> Tensor:
        ctx.world, ctx.before = world, world.stream
        world.go(index)
        if world.program.is_told:
            world.use(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.world.go(ctx.before)
        ctx.world.use(grad)
        return grad, None, None


class Chain(nn.Module):
    """The program's blocks, each on its stream."""

    def __init__(self, world: World, program: Program) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(kind) for kind, _ in program.blocks)
        self._where = [world, [stream for _, stream in program.blocks]]

    def forward(self, x: Tensor) -> Tensor:
        world, streams = self._where
        for block, stream in zip(self.blocks, streams, strict=True):
            x = block(Hop.apply(x, world, stream))
        return Hop.apply(x, world, world.stream)  # where backward begins


class SimulatedWorld(World):
    """The same on the simulation, with memsys's hooks; watches the bound on sources."""

    def __init__(self, program: Program) -> None:
        self.torch = SimulatedTorch(program.seed, program.breath)
        self.torch.at_breath = self.release
        made = (self.torch.runtime.create_stream(f"compute {name}") for name in "ab")
        self.streams = (0, *made)
        self.most_held_bytes = self.bound_bytes = 0
        super().__init__(program)

    def go(self, index: int) -> None:
        if self.streams[index] != self.torch.backend.stream:
            self.torch.runtime.follow(self.streams[index], self.torch.backend.stream)
        self.stream, self.torch.backend.stream = index, self.streams[index]

    def use(self, tensor: Tensor) -> None:
        self.torch.use_here(tensor)

    def breathe(self, count: int) -> None:
        self.torch.runtime.step(count)

    def forget(self) -> None:
        """After a failure: what its remains do wrong is no news."""
        self.slots.clear()
        self.model.zero_grad()
        with suppress(memsys.OrderError):
            self.torch.runtime.drain()
        with suppress(memsys.OrderError):
            self.torch.runtime.create_stream("end")

    def release(self) -> None:
        """What the thread beside the hooks does, at any moment, where there are threads."""
        self.mover.release_sources()
        self.watch()

    def watch(self) -> None:
        held = [span.bytes for span in list(self.mover._departures) if span.source is not None]
        self.most_held_bytes = max(self.most_held_bytes, sum(held))
        self.bound_bytes = max(self.program.window_bytes, self.bound_bytes, *held, 0)

    def decide(self, saved: Any) -> Any:
        places = self.program.places
        if places == "made" and saved.segment is not None:
            return RECOMPUTE(saved.segment)
        if places != "mixed":
            return FILE if places == "file" else HOST
        self.watch()
        return random.Random(self.program.seed * 1009 + saved.index).choice((HOST, HOST, FILE, KEEP))

    def run(self) -> list[Tensor | None]:
        override_runtime(self.torch.runtime, self.torch.backend)
        try:
            memsys.offload(self.model, policy=self.decide, min_bytes=1, host_budget=HOST_BYTES)
            session = session_of(self.model)
            session._prepare(torch.device("cpu"))
            self.mover = session._mover
            self.mover.window_bytes = self.program.window_bytes
            self.mover.ahead = PrefetchWindow(self.program.window_bytes)
            with self.torch:
                for parameter in self.model.parameters():
                    self.torch._tell(parameter, memsys._C.Use.write)
                results = super().run()
                for index in (1, 2, 0):
                    self.go(index)
            memsys.restore(self.model)
            self.model.zero_grad()
            self.torch.runtime.drain()
            self.torch.runtime.create_stream("end")  # raises what a free has found
        finally:
            override_runtime(None)
        return results


@dataclass
class Outcome:
    """kind: "" for a clean run, else order (a missing edge), gradient (wrong bits), bound (too many bytes of sources
    held), error (anything else)."""

    kind: str = ""
    message: str = ""
    digest: int = 0
    operation_count: int = 0
    program: Program | None = field(default=None, repr=False)


def run(program: Program) -> Outcome:
    """Runs the program both ways and compares."""
    wanted = World(program).run()
    world = SimulatedWorld(program)
    outcome = Outcome(program=program)
    try:
        found = world.run()
        outcome.kind, outcome.message = compare(world, found, wanted)
    except memsys.OrderError as error:
        outcome.kind, outcome.message = "order", str(error)
        world.forget()
    except (memsys.MemsysError, RuntimeError, AttributeError, TypeError, IndexError) as error:
        outcome.kind, outcome.message = "error", f"{type(error).__name__}: {error}"
    outcome.digest = world.torch.runtime.schedule_digest
    outcome.operation_count = world.torch.operation_count
    return outcome


def compare(world: SimulatedWorld, found: list[Tensor | None], wanted: list[Tensor | None]) -> tuple[str, str]:
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            return "gradient", f"result {place} of {len(wanted)} differs"
    if world.most_held_bytes > world.bound_bytes:
        return "bound", f"{world.most_held_bytes} bytes of sources held, at most {world.bound_bytes} are allowed"
    return "", ""
