"""Reads a compiled step: its loops and their trips, its convolutions and products, and how many of them wait in a row.

Nothing is run; what is read is the program that TensorFlow hands to XLA for any device, before the optimisations of
one of them, without what nothing depends on: of a call what is read of its result, of a loop or a condition all.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tensorflow.compiler.xla.service import hlo_pb2

_HEAVY = {"convolution", "dot"}
_HOST = {"infeed", "outfeed", "send", "send-done", "recv", "recv-done", "custom-call"}
_COMPARE = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_SCALAR = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "minimum": min, "maximum": max}
_KNOWN = {"constant", "compare", "and", "convert", "copy", "reshape", "bitcast", "broadcast", *_SCALAR}
_MOST = 10_000  # trips


class Loop(NamedTuple):
    """A loop: how deep it is nested, its trips (None: they depend on the data), and the heavy operations of a trip."""

    depth: int
    trips: int | None
    heavy: int


class Program(NamedTuple):
    """What is in a compiled step.

    Attributes:
        loops: in the order in which they run; a loop inside of another one follows it.
        heavy: convolutions and matrix products, those in loops as often as they run, or once where the data
            says how often.
        critical: of these, the longest row in which each one needs the results of the one before; loops run trip
            after trip.
        host: operations that leave the device, or that a library of the host would have to provide.
    """

    loops: list[Loop]
    heavy: int
    critical: int
    host: list[str]


def compiled(function: Callable, *args: Any) -> bytes:
    """Return the program of a `tf.function` made with `jit_compile=True`, serialised."""
    return function.experimental_get_compiler_ir(*args)(stage="hlo_serialized")


def read(serialized: bytes) -> Program:
    """Return what is in a serialised `HloModuleProto`."""
    return _Reader(hlo_pb2.HloModuleProto.FromString(serialized)).program()


class _Reader:
    """Walks the computations of a module."""

    def __init__(self, module: hlo_pb2.HloModuleProto):
        self.module = module
        self.computations = {c.id: c for c in module.computations}
        self.loops: list[Loop] = []

    def program(self) -> Program:
        host = sorted(
            i.custom_call_target or i.opcode
            for c in self.module.computations
            for i in c.instructions
            if i.opcode in _HOST
        )
        entry = self.computations[self.module.entry_computation_id]
        heavy, critical = self.walk(entry, [0] * len(entry.program_shape.parameters), 0)[:2]
        return Program(self.loops, heavy, critical, host)

    def walk(self, computation, inputs: list, depth: int, wanted: set[int] | None = None) -> tuple[int, int, Any]:
        """Return `(heavy operations, longest row, row that ends in the result)`, given those that end in the inputs.

        A row's length is a number, or a list of them for the entries of a tuple, of which some may be wanted only.
        """
        rows, heavy, longest, needed = {}, 0, 0, _needed(computation, wanted)
        for instruction in computation.instructions:  # operands come first
            if instruction.id not in needed:
                continue
            operands = [rows.get(i, 0) for i in instruction.operand_ids]
            count, row = self.step(computation, needed, instruction, operands, inputs, depth)
            rows[instruction.id] = row
            heavy, longest = heavy + count, max(longest, _longest([row]))
        return heavy, longest, rows[computation.root_id]

    def step(self, computation, needed: dict, instruction, operands: list, inputs: list, depth: int) -> tuple[int, Any]:
        """Return the heavy operations of one of the instructions needed, and the longest row that ends in it."""
        called = [self.computations[i] for i in instruction.called_computation_ids]
        before = _longest(operands)
        if instruction.opcode == "parameter":
            return 0, inputs[instruction.parameter_number]
        if instruction.opcode == "tuple":
            return 0, operands
        if instruction.opcode == "get-tuple-element" and isinstance(operands[0], list):
            return 0, operands[0][instruction.tuple_index]
        if instruction.opcode in _HEAVY:
            return 1, before + 1
        if instruction.opcode == "call":
            heavy, _, row = self.walk(called[0], operands, depth, _entries(instruction, needed))
            return heavy, row
        if instruction.opcode == "conditional":
            walked = [self.walk(c, [before], depth)[:2] for c in called]
            return max(h for h, _ in walked), max(row for _, row in walked)
        if instruction.opcode == "while":
            return self.loop(computation, instruction, before, depth)
        return 0, before

    def loop(self, computation, instruction, before: int, depth: int) -> tuple[int, int]:
        place = len(self.loops)
        self.loops.append(Loop(depth, None, 0))
        condition, body = self.while_parts(instruction)
        trips = self.trips(computation, instruction, condition, body)
        (heavy, row), (asked, asked_row) = (self.walk(part, [0], depth + 1)[:2] for part in (body, condition))
        self.loops[place] = Loop(depth, trips, heavy)
        times = 1 if trips is None else trips
        return times * heavy + (times + 1) * asked, before + times * row + (times + 1) * asked_row

    def while_parts(self, instruction):
        """Return the condition, which gives one truth value, and the body."""
        called = [self.computations[i] for i in instruction.called_computation_ids]
        called.sort(key=lambda c: len(c.program_shape.result.tuple_shapes))
        return called

    def trips(self, computation, instruction, condition, body) -> int | None:
        """Return how often the body runs, by evaluating the loop's whole numbers; None where that can't be told.

        What the data would have to say, such as whether a tolerance is reached, counts as not yet.
        """
        outer = _Scalars(self.computations, computation, {})
        state = {0: outer.of(instruction.operand_ids[0])}
        for trip in range(_MOST):
            going = _Scalars(self.computations, condition, state).result()
            if going is None:
                return None
            if not going:
                return trip
            state = {0: _Scalars(self.computations, body, state).result()}
        return None


class _Scalars:
    """Evaluates the whole numbers of a computation that don't depend on data; None is what does."""

    def __init__(self, computations: dict, computation, inputs: dict[int, Any]):
        self.computations, self.computation, self.inputs = computations, computation, inputs
        self.instructions = {i.id: i for i in computation.instructions}
        self.known: dict[int, Any] = {}

    def result(self) -> Any:
        return self.of(self.computation.root_id)

    def of(self, number: int) -> Any:
        """Return the value of an instruction; a list for a tuple."""
        if number not in self.known:
            self.known[number] = self.value(self.instructions[number])
        return self.known[number]

    def value(self, i) -> Any:
        if i.opcode == "parameter":
            return self.inputs.get(i.parameter_number)
        if i.opcode == "tuple":
            return [self.of(n) for n in i.operand_ids]
        if i.opcode == "get-tuple-element":
            whole = self.of(i.operand_ids[0])
            return whole[i.tuple_index] if isinstance(whole, list) else None
        if i.opcode == "call":
            inputs = dict(enumerate(self.of(n) for n in i.operand_ids))
            return _Scalars(self.computations, self.computations[i.called_computation_ids[0]], inputs).result()
        if i.shape.dimensions or i.opcode not in _KNOWN:
            return None
        if i.opcode == "constant":
            return _constant(i.literal)
        values = [self.of(n) for n in i.operand_ids]
        if i.opcode == "and":  # unknown: true until the other one is false
            known = [v for v in values if v is not None]
            return all(known) if known else None
        if None in values:
            return None
        if i.opcode == "compare":
            return _COMPARE[i.comparison_direction](*values)
        return _SCALAR[i.opcode](*values) if i.opcode in _SCALAR else values[0]


def _constant(literal) -> int | bool | None:
    for name in ("preds", "s32s", "s64s", "u32s", "u64s"):
        if len(getattr(literal, name)):
            return getattr(literal, name)[0]
    return int(np.frombuffer(literal.s8s, np.int8)[0]) if literal.s8s else None


def _needed(computation, wanted: set[int] | None) -> dict[int, Any]:
    """Return the instructions that the result, or the entries wanted of it, depend on; XLA drops the others.

    Tracing leaves many: what `tf.vectorized_map` has read, and gradients that come with an HVP.
    """
    instructions, waiting = {i.id: i for i in computation.instructions}, [computation.root_id]
    root, needed = instructions[computation.root_id], {}
    if wanted is not None and root.opcode == "tuple":
        needed, waiting = {root.id: root}, [root.operand_ids[i] for i in wanted]
    while waiting:
        if (number := waiting.pop()) not in needed:
            needed[number] = instructions[number]
            waiting += instructions[number].operand_ids
    return needed


def _entries(call, needed: dict) -> set[int] | None:
    """Return the entries of a call's result that are read; None where it is read as a whole."""
    readers = [i for i in needed.values() if call.id in i.operand_ids]
    if not readers or any(i.opcode != "get-tuple-element" for i in readers):
        return None
    return {i.tuple_index for i in readers}


def _longest(rows: list) -> int:
    """Return the largest number in nested lists."""
    return max((_longest(r) if isinstance(r, list) else r for r in rows), default=0)
