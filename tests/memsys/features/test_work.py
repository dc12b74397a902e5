"""Gathers beside the computation: the same rows, in order, and safe to drop at any time.

A work that outlives its reader writes into memory that the pool may have given to somebody else; an eager prefetch
reads a whole epoch ahead. Neither shows in a result that is merely looked at once.
"""

from __future__ import annotations

import gc
import multiprocessing
import threading

import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402
from memsys.features import work  # noqa: E402

ROWS, WIDTH, COUNT = 4000, 100, 1000  # a batch of 400,000 bytes: more than what the pool begins with


@pytest.fixture(scope="module")
def x():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table(x):
    return memsys.HostTable(x)


def batches(how_many, count=COUNT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-ROWS, ROWS, (count,), generator=generator) for _ in range(how_many)]


class Counted:
    """Batches that say how many of them were taken."""

    def __init__(self, given):
        self.given, self.taken = given, 0

    def __iter__(self):
        for index in self.given:
            self.taken += 1
            yield index


@pytest.mark.parametrize("count", [0, 3, COUNT, 100_000])
def test_gather_async_is_gather(table, x, count):
    (index,) = batches(1, count)
    work = table.gather_async(index)
    assert isinstance(work, memsys.GatherWork)
    assert torch.equal(work.wait(), x[index]) and work.is_done()
    assert work.wait() is work.wait()
    for given in (index.int(), index.numpy(), index[:50].tolist()):
        assert torch.equal(table.gather_async(given).wait(), x[torch.as_tensor(given).long()])


def test_gather_async_writes_out(table, x):
    (index,) = batches(1)
    out = torch.empty(COUNT, WIDTH)
    assert table.gather_async(index, out=out).wait() is out
    assert torch.equal(out, x[index])


def test_an_error_arrives_at_wait(table, x):
    work = table.gather_async([0, ROWS])
    after = table.gather_async([1])
    for _ in range(2):
        with pytest.raises(memsys.RangeError, match="position 1"):
            work.wait()
    assert torch.equal(after.wait(), x[[1]])


@pytest.mark.parametrize(("index", "error"), [([0.5], TypeError), ([[1]], ValueError), ("a", TypeError)])
def test_what_is_no_index_is_refused_no_later_than_at_wait(table, index, error):
    with pytest.raises(error) as raised:
        table.gather_async(index).wait()
    assert isinstance(raised.value, memsys.MemsysError)


def test_a_bad_out_arrives_at_wait_and_stays(table):
    out = torch.full((2, WIDTH), -1.0)
    for given in (out[:1], out):
        with pytest.raises((ValueError, IndexError)):
            table.gather_async([0, ROWS], out=given).wait()
    assert (out == -1).all()


def test_dropped_works_leave_the_pool_sound(table, x):
    wrong = 0
    for index in batches(200):
        dropped = table.gather_async(index.flip(0))
        table.gather_async(index + 1)  # some of it out of range, dropped at once
        kept = table.gather_async(index)
        del dropped
        rows = table.gather(index)  # on this thread, while the others write
        wrong += not torch.equal(rows, x[index])
        wrong += not torch.equal(kept.wait(), x[index])
        wrong += not torch.equal(rows, x[index])
    assert wrong == 0
    assert table._core.pool_bytes <= 64 << 20


def test_a_work_outlives_the_table(x):
    table = memsys.HostTable(x)
    (index,) = batches(1)
    work, dropped = table.gather_async(index), table.gather_async(index)
    del table, dropped
    gc.collect()
    assert torch.equal(work.wait(), x[index])


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
@pytest.mark.parametrize("how_many", [0, 1, 2, 20])
def test_prefetch_gives_every_batch_in_order(table, x, depth, how_many):
    given = [index[: COUNT - 7 * place] for place, index in enumerate(batches(how_many))]
    found = list(memsys.prefetch(table, iter(given), depth=depth))
    assert len(found) == how_many
    for rows, index in zip(found, given, strict=True):
        assert torch.equal(rows, x[index])


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_is_lazy(table, x, depth):
    given = Counted(batches(30))
    stream = memsys.prefetch(table, given, depth=depth)
    assert given.taken == 0
    for place, rows in enumerate(stream):
        assert given.taken <= place + depth + 1
        assert given.taken >= min(30, place + depth + 1)  # and as far ahead as it was asked to be
        assert torch.equal(rows, x[given.given[place]])


def test_batches_without_an_end_left_half_way(table, x):
    def endless():
        generator = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(ROWS, (COUNT,), generator=generator)

    for _ in range(50):
        stream = memsys.prefetch(table, endless(), depth=3)
        for rows, wanted in zip(stream, endless(), strict=True):
            assert torch.equal(rows, x[wanted])
            break
        stream.close()
        (index,) = batches(1)
        assert torch.equal(table.gather(index), x[index])


def test_rows_that_the_reader_keeps_are_not_overwritten(table, x):
    given = batches(20)
    kept = [rows[:5] for rows in memsys.prefetch(table, given, depth=2)]
    for rows, index in zip(kept, given, strict=True):
        assert torch.equal(rows, x[index[:5]])


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_of_nothing(table, depth):
    with pytest.raises(ValueError, match="depth") as raised:
        memsys.prefetch(table, [], depth=depth)
    assert isinstance(raised.value, memsys.InputError)


@pytest.mark.parametrize("bad", [0, 4, 9])
def test_an_error_in_a_batch_is_raised_at_that_batch(table, x, bad):
    given = batches(10)
    given[bad] = torch.tensor([0, ROWS])
    stream = memsys.prefetch(table, given, depth=2)
    for index in given[:bad]:
        assert torch.equal(next(stream), x[index])
    with pytest.raises(memsys.RangeError, match=f"index {ROWS} at position 1"):
        next(stream)
    assert list(stream) == []
    assert torch.equal(table.gather([1]), x[[1]])


def test_two_streams_and_other_threads_at_once(x):
    tables = [memsys.HostTable(x), memsys.HostTable(x * 2)]
    wrong = []

    def read(table, wanted, seed):
        given = batches(30, seed=seed)
        for rows, index in zip(memsys.prefetch(table, given), given, strict=True):
            if not torch.equal(rows, wanted[index]):
                wrong.append(seed)

    threads = [
        threading.Thread(target=read, args=(table, x * factor, seed))
        for seed in range(3)
        for factor, table in enumerate(tables, start=1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def prefetch_in_child(table, given, connection):
    torch.set_num_threads(1)  # as in a DataLoader's worker: OpenMP does not survive fork()
    try:
        connection.send([rows.double().sum().item() for rows in memsys.prefetch(table, given)])
    except BaseException as error:
        connection.send(repr(error))


def test_prefetch_in_a_forked_child(table, x):
    given = batches(8)
    stream = memsys.prefetch(table, given)
    next(stream)  # this process has its thread, which the child has not
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=prefetch_in_child, args=(table, given, theirs))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == pytest.approx([x[index].double().sum().item() for index in given])
    child.join(60)
    assert torch.equal(next(stream), x[given[1]])


@pytest.mark.parametrize("depth", [1, 3])
def test_what_makes_the_batches_fails_after_those_before_it(depth):
    table = memsys.HostTable(torch.arange(40.0).view(10, 4))

    def batches():
        yield from ([0, 1], [2], [3, 4])
        raise OSError("no more")

    read = []
    stream = (read.append(len(rows)) for rows in memsys.prefetch(table, batches(), depth=depth))
    with pytest.raises(OSError, match="no more"):
        list(stream)
    assert read == [2, 1, 2]


def test_a_sampler_may_fill_one_buffer_again_and_again():
    table = memsys.HostTable(torch.arange(10.0).repeat_interleave(1000).view(10, 1000))

    def batches():
        buffer = torch.zeros(3, dtype=torch.int64)
        for row in range(10):
            yield buffer.fill_(row)

    assert [rows.unique().tolist() for rows in memsys.prefetch(table, batches(), depth=4)] == [[i] for i in range(10)]


def test_a_gather_without_a_thread_to_be_had_is_done_at_once(table, x, monkeypatch):
    """What a pool could not start a thread for stays in its queue; it must not be done twice, into memory of others."""

    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    index, other = batches(2)
    out = torch.empty(COUNT, WIDTH)
    monkeypatch.setattr(work, "_executor", None)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", refuse)
        assert torch.equal(table.gather_async(index, out).wait(), x[index])
        with pytest.raises(memsys.RangeError):
            table.gather_async(torch.tensor([ROWS])).wait()
    out.zero_()
    assert torch.equal(table.gather_async(other).wait(), x[other])
    assert not out.any()
