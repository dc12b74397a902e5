"""A computed trace has the properties of a recorded one: order, times, segments, and sizes of one GPU's part."""

from __future__ import annotations

import pytest

from memsys.planning.compute import ComputeModel, Load
from memsys.planning.gpus import find_machine
from memsys.planning.shapes import SHAPES
from memsys.planning.synthetic import synthetic_trace
from memsys.planning.trace import StepTrace


def make(name: str, seq: int = 4096, batch: int = 1, parallel: int = 1) -> tuple[ComputeModel, StepTrace]:
    model = ComputeModel(SHAPES[name], find_machine("h200").rates(), Load(seq, batch, parallel))
    return model, synthetic_trace(model)


@pytest.mark.parametrize("name", list(SHAPES))
def test_order_and_times(name: str) -> None:
    model, trace = make(name)
    end = trace.forward_us + trace.backward_us
    assert [span.index for span in trace.spans] == list(range(len(trace.spans)))
    assert [span.saved_us for span in trace.spans] == sorted(span.saved_us for span in trace.spans)
    for span in trace.spans:
        assert 0 <= span.saved_us <= trace.forward_us * (1 + 1e-12)
        assert trace.forward_us * (1 - 1e-12) <= span.first_use_us < span.last_use_us <= end * (1 + 1e-12)
        for source in span.remake_inputs:
            assert trace.spans[source].layer == span.layer
            assert trace.spans[source].saved_us <= span.saved_us
    times = model.layer_times()
    assert trace.forward_us > model.shape.layers * times.forward_us
    assert trace.backward_us > model.shape.layers * times.backward_us


def test_layers_are_read_in_reverse() -> None:
    _, trace = make("gpt-7b")
    inputs = [span for span in trace.spans if span.is_layer_input]
    assert [span.layer for span in inputs] == list(range(32))
    assert [span.last_use_us for span in inputs] == sorted((span.last_use_us for span in inputs), reverse=True)


@pytest.mark.parametrize(("name", "batch", "parallel"), [("gpt-7b", 2, 8), ("llama3-8b", 1, 1), ("llama-tiny", 4, 2)])
def test_segments_divide_by_rows(name: str, batch: int, parallel: int) -> None:
    model, trace = make(name, 1024, batch, parallel)
    assert len(trace.segments) == model.shape.layers
    for segment in trace.segments:
        divided = [span for span in trace.spans if span.segment == segment.id]
        whole = [trace.spans[index] for index in segment.inputs]
        assert {span.layer for span in (*divided, *whole)} == {segment.layer}
        assert [span.is_layer_input or span.is_attention_output for span in whole] == [True, True]
        assert all(span.row_bytes * segment.row_count == span.bytes for span in divided)
        assert segment.first_use_us == min(span.first_use_us for span in divided)
        assert segment.begin_us < segment.end_us
        assert 0 < segment.remake_us < model.layer_times().forward_us


def test_a_part_is_the_whole_over_the_gpus() -> None:
    whole, part = make("gpt-7b", 8192)[1], make("gpt-7b", 8192, parallel=8)[1]
    for one, other in zip(whole.spans, part.spans, strict=True):
        assert one.bytes == pytest.approx(8 * other.bytes, abs=8)
    assert sum(whole.resident_bytes.values()) == pytest.approx(8 * sum(part.resident_bytes.values()), abs=64)
    assert sum(whole.resident_bytes.values()) == 16 * SHAPES["gpt-7b"].parameters


def test_a_trace_survives_its_file(tmp_path) -> None:
    _, trace = make("llama-tiny")
    trace.save(tmp_path / "trace.json")
    assert StepTrace.load(tmp_path / "trace.json") == trace
