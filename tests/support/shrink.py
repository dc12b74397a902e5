"""From a program that fails to the smallest that still fails: fewest actions, then fewest blocks and streams, then the
plainest settings. Every candidate is run, on the same seed, so what comes out fails when it is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from stream_scenario import WINDOWS, Program


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """`fails` says whether a program still shows the failure; the one given does."""
    while True:
        smaller = next((candidate for candidate in candidates(program) if fails(candidate)), None)
        if smaller is None:
            return program
        program = smaller


def candidates(program: Program) -> Iterator[Program]:
    """Programs one step simpler, the largest steps first."""
    actions, blocks = program.actions, program.blocks
    for size in (8, 4, 2, 1):
        for begin in range(0, len(actions) - size + 1, size):
            yield replace(program, actions=actions[:begin] + actions[begin + size :])
    for place in range(len(blocks) if len(blocks) > 1 else 0):
        yield replace(program, blocks=blocks[:place] + blocks[place + 1 :])
    for place, (kind, stream) in enumerate(blocks):
        if stream:
            yield replace(program, blocks=(*blocks[:place], (kind, 0), *blocks[place + 1 :]))
    for place, action in enumerate(actions):
        if action.stream:
            yield replace(program, actions=(*actions[:place], action._replace(stream=0), *actions[place + 1 :]))
    plain = {"breath": 0, "window_bytes": WINDOWS[-1], "places": "host", "is_told": True}
    for name, value in plain.items():
        if getattr(program, name) != value:
            yield replace(program, **{name: value})
