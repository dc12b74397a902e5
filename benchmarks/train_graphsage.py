"""What part of training GraphSAGE goes into gathering features, from a HostTable and from torch_geometric's own Data?

Trains two layers to predict the archive section of each package of a Debian release from the words of its description
and from those of the packages around it:

    python benchmarks/train_graphsage.py --data debian-graph.npz --epochs 3

The graph is built from a distribution's own package index, on any machine with apt:

    apt-cache dumpavail | python benchmarks/train_graphsage.py --build debian-graph.npz

Both ways train a model of their own from the same seeds, an epoch in turn, and draw the same batches, which the first
one is checked for. Needs torch_geometric, and for its NeighborLoader pyg-lib, or torch-sparse with torch-scatter.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shown
import torch

from memsys.cli.console import plain_table

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "debian-graph.npz"
_WAYS = ("memsys", "torch_geometric")
_COLUMNS = ("sampling", "gather", "compute", "epoch")
_BUCKETS = 1 << 14
_WORD = re.compile("[a-z]{3,}")
# Names of packages in a list of dependencies, without versions, architectures and the bars between alternatives.
_NAME = re.compile(r"(?:^|[,|])\s*([^\s,|(:\[]+)")


@dataclass(frozen=True)
class Setting:
    """What is trained. `width`: columns of float32 a node has; `fanout`: neighbors sampled of each node, by layer."""

    width: int = 256
    hidden: int = 128
    fanout: tuple[int, ...] = (10, 10)
    batch: int = 1024
    epochs: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Graph:
    """x [nodes, width], y [nodes], undirected edges [2, edges], and three parts of the nodes."""

    x: torch.Tensor
    y: torch.Tensor
    edge_index: torch.Tensor
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    class_count: int


def missing(data: Path) -> str | None:
    """What this needs and does not find, and the remedy; None if it can run."""
    if not data.exists():
        return (f"no graph at {data}; build it with `apt-cache dumpavail | python benchmarks/train_graphsage.py "
                "--build debian-graph.npz` and pass --data debian-graph.npz")  # fmt: skip
    try:
        from torch_geometric import typing
    except ImportError:
        return "torch_geometric is not installed; pip install torch_geometric, and pyg-lib or torch-sparse"
    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        return "torch_geometric's NeighborLoader needs pyg-lib, or torch-sparse with torch-scatter, and finds neither"
    return None


# The graph ---------------------------------------------------------------------------------------------------------


def build_graph(index: Iterable[str], path: Path) -> None:
    """Writes the graph of a package index (the lines of `apt-cache dumpavail`) to `path`."""
    packages = sorted(stanzas(index), key=lambda fields: fields["Package"])
    ids = {fields["Package"]: node for node, fields in enumerate(packages)}
    edges = set()
    for source, fields in enumerate(packages):
        for kind in ("Depends", "Pre-Depends", "Recommends"):
            edges |= {(source, ids[name]) for name in _NAME.findall(fields.get(kind, "")) if name in ids}
    edges = sorted((source, target) for source, target in edges if source != target)
    words = [_WORD.findall(fields.get("Description", "").lower()) for fields in packages]
    tokens = [sorted({zlib.crc32(word.encode()) % _BUCKETS for word in row}) for row in words]
    section_names, label = np.unique([fields.get("Section", "unknown") for fields in packages], return_inverse=True)
    np.savez_compressed(
        path,
        edge_index=np.array(edges, dtype=np.int32).reshape(-1, 2).T,
        label=label.astype(np.int16),
        section_names=section_names,
        token=np.array([token for row in tokens for token in row], dtype=np.uint16),
        token_ptr=np.cumsum([0, *map(len, tokens)]).astype(np.int32),
    )
    print(f"{path}: {len(packages)} packages, {len(edges)} dependencies, {len(section_names)} sections")


def stanzas(lines: Iterable[str]) -> Iterable[dict[str, str]]:
    """The fields of each package, first lines only; the first stanza of a name counts."""
    seen, fields = set(), {}
    for line in [*lines, ""]:
        name, colon, value = line.rstrip("\n").partition(": ")
        if colon and not name.startswith(" "):
            fields[name] = value
        elif not line.strip() and fields:
            if "Package" in fields and fields["Package"] not in seen:
                seen.add(fields["Package"])
                yield fields
            fields = {}


def load_graph(path: Path, setting: Setting) -> Graph:
    """Features are a fixed random projection of the mean of each description's words; edges get their reverse."""
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name].astype(np.int64)) for name in
                  ("edge_index", "label", "token", "token_ptr")}  # fmt: skip
    generator = torch.Generator().manual_seed(setting.seed)
    projection = torch.randn(_BUCKETS, setting.width, generator=generator)
    x = torch.nn.functional.embedding_bag(arrays["token"], projection, arrays["token_ptr"][:-1], mode="mean")
    count = len(arrays["label"])
    edges = torch.cat([arrays["edge_index"], arrays["edge_index"].flip(0)], dim=1)
    keys = torch.unique(edges[0] * count + edges[1])  # two packages may depend on each other
    train, validation, test = torch.randperm(count, generator=generator).split(
        [count * 3 // 5, count // 5, count - count * 3 // 5 - count // 5]
    )
    return Graph(
        x=x, y=arrays["label"], edge_index=torch.stack([keys // count, keys % count]), train=train,
        validation=validation, test=test, class_count=int(arrays["label"].max()) + 1,
    )  # fmt: skip


# Training ----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds since it was last read, by phase."""

    seconds: Counter[str] = field(default_factory=Counter)

    def timed(self, phase: str, function: Callable) -> Callable:
        """The function, whose time counts as `phase`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[phase] += time.perf_counter() - began
            return result

        return run

    def read(self) -> Counter[str]:
        """Seconds by phase; begins again at zero."""
        seconds, self.seconds = self.seconds, Counter()
        return seconds


class GraphSage(torch.nn.Module):
    """Two SAGEConv layers: each node's row, and the mean of its neighbors' rows."""

    def __init__(self, width: int, hidden: int, class_count: int) -> None:
        from torch_geometric.nn import SAGEConv

        super().__init__()
        self.first, self.second = SAGEConv(width, hidden), SAGEConv(hidden, class_count)

    def forward(self, batch: Any) -> torch.Tensor:
        """Logits [batch_size, classes] of the nodes a batch was drawn for, which come first in it."""
        return self.second(self.first(batch.x, batch.edge_index).relu(), batch.edge_index)[: batch.batch_size]


@contextlib.contextmanager
def timed_index_select(clock: Clock) -> Iterator[None]:
    """Inside, what torch_geometric fetches a Data's features with is timed."""
    from torch_geometric.loader import utils

    plain = utils.index_select
    utils.index_select = clock.timed("gather", plain)
    try:
        yield
    finally:
        utils.index_select = plain


def source_of(way: str, graph: Graph, clock: Clock) -> Any:
    """What NeighborLoader draws from: a HostFeatureStore whose fetches are timed and a graph store, or a Data."""
    from torch_geometric.data import Data

    if way == "torch_geometric":
        return Data(x=graph.x, y=graph.y, edge_index=graph.edge_index)

    from memsys.integrations.pyg import HostFeatureStore

    class TimedStore(HostFeatureStore):
        """Times all that happens between the loader's question and the rows."""

        multi_get_tensor = clock.timed("gather", HostFeatureStore.multi_get_tensor)

    store, edges = TimedStore(), Data()
    store[None, "x", None], store[None, "y", None] = graph.x, graph.y
    edges.put_edge_index(tuple(graph.edge_index), layout="coo", size=(len(graph.y), len(graph.y)))
    return store, edges


class Trainee:
    """One way's loaders and a model of its own; every way's begins with the same weights."""

    def __init__(self, way: str, graph: Graph, setting: Setting, clock: Clock) -> None:
        from torch_geometric.loader import NeighborLoader

        self.seed, self.clock = setting.seed, clock
        source = source_of(way, graph, clock)
        self.loaders = {
            part: NeighborLoader(source, list(setting.fanout), input_nodes=getattr(graph, part),
                                 batch_size=setting.batch, shuffle=part == "train")
            for part in ("train", "validation", "test")
        }  # fmt: skip
        torch.manual_seed(setting.seed)
        self.model = GraphSage(setting.width, setting.hidden, graph.class_count)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)

    def first_batch(self) -> Any:
        torch.manual_seed(self.seed)
        return next(iter(self.loaders["train"]))

    def epoch(self, number: int) -> dict[str, float]:
        """Trains on every batch once: seconds by phase and in all, and the mean loss."""
        torch.manual_seed(self.seed + number)
        self.clock.read()
        began, losses = time.perf_counter(), []
        batches = iter(self.loaders["train"])
        fetch, step = self.clock.timed("fetch", next), self.clock.timed("compute", self._step)
        while (batch := fetch(batches, None)) is not None:
            losses.append(step(batch))
        seconds = self.clock.read()
        # What a loader does for a batch besides fetching features is sampling, and putting the batch together.
        split = {"sampling": seconds["fetch"] - seconds["gather"], "gather": seconds["gather"]}
        split |= {"compute": seconds["compute"], "epoch": time.perf_counter() - began}
        return split | {"loss": statistics.fmean(losses)}

    def _step(self, batch: Any) -> float:
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(batch), batch.y[: batch.batch_size])
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, part: str) -> float:
        """The share of a part's nodes whose section is predicted, from sampled neighbors."""
        torch.manual_seed(self.seed)
        hits = [(self.model(batch).argmax(1) == batch.y[: batch.batch_size]) for batch in self.loaders[part]]
        return torch.cat(hits).float().mean().item()


def compare(graph: Graph, setting: Setting, tell: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Trains both ways, an epoch in turn: medians of the seconds of each phase, and accuracies."""
    clock = Clock()
    with timed_index_select(clock):
        trainees = {way: Trainee(way, graph, setting, clock) for way in _WAYS}
        assert_same_batch(*(trainee.first_batch() for trainee in trainees.values()))
        epochs: dict[str, list] = {way: [] for way in _WAYS}
        for number in range(setting.epochs):
            # Each begins as often as the other, or nearly.
            for way in _WAYS if number % 2 == 0 else reversed(_WAYS):
                epochs[way].append(trainees[way].epoch(number))
                tell(f"epoch {number}, {way}: {epochs[way][-1]['epoch']:.2f} s, loss {epochs[way][-1]['loss']:.4f}")
        majority = graph.y[graph.train].bincount().argmax()
        return {
            "setting": asdict(setting),
            "nodes": len(graph.y),
            "edges": graph.edge_index.shape[1],
            "row_bytes": graph.x[0].nbytes,
            "majority_accuracy": (graph.y[graph.test] == majority).float().mean().item(),
            "ways": {
                way: {
                    "median_s": {phase: statistics.median(one[phase] for one in epochs[way]) for phase in _COLUMNS},
                    "epochs": epochs[way],
                    "validation_accuracy": trainees[way].accuracy("validation"),
                    "test_accuracy": trainees[way].accuracy("test"),
                }
                for way in _WAYS
            },
        }


def assert_same_batch(ours: Any, theirs: Any) -> None:
    """The two ways draw the same nodes and edges for one seed, and fetch the same rows to the last bit."""
    for name in ("n_id", "edge_index", "x", "y"):
        assert torch.equal(ours[name], theirs[name]), f"the first batches differ in {name}"


# Showing -----------------------------------------------------------------------------------------------------------


def report_lines(measured: dict[str, Any]) -> list[str]:
    """The table of both ways, the gather's part of it, and how good the models are."""
    setting, ways = measured["setting"], measured["ways"]
    rows = [[way, *(f"{ways[way]['median_s'][phase]:.3f}" for phase in _COLUMNS),
             f"{ways[way]['test_accuracy']:.1%}"] for way in _WAYS]  # fmt: skip
    title = (f"{measured['nodes']} nodes, {measured['edges']} edges, rows of {measured['row_bytes']} bytes, fanout "
             f"{setting['fanout']}, batch {setting['batch']}; medians of {setting['epochs']} epochs")  # fmt: skip
    ours, theirs = (ways[way]["median_s"] for way in _WAYS)
    losses = [[epoch["loss"] for epoch in ways[way]["epochs"]] for way in _WAYS]
    return [
        plain_table(title, ["features", *(f"{phase} s" for phase in _COLUMNS), "test accuracy"], rows),
        f"gather: {theirs['gather'] / ours['gather']:.2f} times as fast as torch_geometric's; of an epoch it takes "
        f"{ours['gather'] / ours['epoch']:.1%} and {theirs['gather'] / theirs['epoch']:.1%}",
        f"test accuracy of always saying the largest section: {measured['majority_accuracy']:.1%}",
        f"losses of both ways {'equal to the last bit' if losses[0] == losses[1] else 'differ'}",
    ]


def machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    import torch_geometric

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu_count": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "sampler": "pyg-lib" if torch_geometric.typing.WITH_PYG_LIB else "torch-sparse",
    }


@pytest.mark.filterwarnings("ignore")  # torch_geometric's: deprecated parts of torch, and of itself
def test_graphsage(benchmark, capsys) -> None:
    """One epoch both ways, at a narrow width; the batches and the losses are the same."""
    reason = missing(_DATA)
    if reason is not None:
        pytest.skip(reason)
    setting = Setting() if benchmark.enabled else Setting(width=16, hidden=8, fanout=(2, 2), epochs=1)
    graph = load_graph(_DATA, setting)
    measured = benchmark.pedantic(compare, args=(graph, setting), rounds=1, iterations=1)
    benchmark.extra_info.update(measured)
    shown.show(capsys, *report_lines(measured), *shown.caution(benchmark))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA, metavar="FILE", help="the graph (default: %(default)s)")
    parser.add_argument("--build", type=Path, metavar="FILE", help="write the graph of the package index on stdin")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    for name in ("width", "hidden", "batch", "epochs", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting(), name), help="(default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.build is not None:
        build_graph(sys.stdin, arguments.build)
        return 0
    warnings.simplefilter("ignore")  # torch_geometric's: deprecated parts of torch, and of itself
    reason = missing(arguments.data)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    setting = Setting(**{name: value for name, value in vars(arguments).items() if hasattr(Setting, name)})
    measured = {"machine": machine(), **compare(load_graph(arguments.data, setting), setting, tell=print)}
    print(*report_lines(measured), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
