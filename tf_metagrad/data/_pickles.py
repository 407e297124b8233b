"""Pickled arrays, read as data: nothing in the file can call, import or build anything but an array of integers.

Three walls, one behind the other. The instructions of the pickle are looked through first, and a file that holds any
which lists, dicts, texts, numbers and arrays do not need is refused before one is carried out. Of the names that a
pickle may ask for, a few are known, and they stand for the classes below rather than for NumPy's own, so that no native
code meets an unchecked state. And what comes out is checked by whoever asked for it.
"""

import codecs
import math
import os
import pickle
import pickletools
from typing import Any

import numpy as np

_PLAIN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_LIST EMPTY_DICT EMPTY_TUPLE LIST DICT TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
INSTRUCTIONS = frozenset(_PLAIN.split())
TUPLES = 10_000  # tuples nested deeper than the C stack would crash the interpreter when they are hashed, as keys
_DICTS = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS")

_NUMPY = {f"{package}.{module}" for package in ("numpy.core", "numpy._core") for module in ("multiarray", "numeric")}


def load(path: str | os.PathLike) -> Any:
    """Returns what a pickle file holds: dicts, lists, tuples, texts, bytes, numbers and integer arrays.

    Texts of Python 2 come as bytes. Arrays share the memory of the file's bytes and cannot be written to.

    Args:
        path: the file, of any pickle protocol.

    Returns:
        The object.

    Raises:
        ValueError: the file is truncated, malformed, or asks for anything else.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            _look_through(file)
            file.seek(0)
            return _finished(_Unpickler(file, encoding="bytes").load())
        except OSError:
            raise
        except Exception as error:  # whatever a malformed pickle makes of an unpickler
            raise ValueError(
                f"{name!r} is not a pickle of plain integer arrays, lists, dicts and texts ({_reason(error)}), "
                "expected one: nothing of it was executed; fetch the file again, from a source that you trust."
            ) from error


def check_text(value: Any) -> str:
    """Returns a text of a pickle, of Python 2 or 3; raises TypeError or ValueError where it is none, or unprintable."""
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text or not text.isprintable():
        raise TypeError("a name is no text")
    return text


def check_numbers(value: Any, count: int) -> np.ndarray:
    """Returns numbers of a pickle as int64; raises TypeError or ValueError unless all are whole, in [0, count)."""
    if not isinstance(value, np.ndarray) and not all(type(number) is int for number in value):
        raise TypeError("a number is not whole")
    numbers = np.asarray(value, np.int64)
    if numbers.ndim != 1 or not len(numbers) or numbers.min() < 0 or numbers.max() >= count:
        raise ValueError(f"the numbers of images or classes are not between 0 and {count - 1}")
    return numbers


def _look_through(file: Any) -> None:
    tuples, dicts = 0, False
    for count, (instruction, argument, position) in enumerate(pickletools.genops(file)):
        if instruction.name not in INSTRUCTIONS:
            raise pickle.UnpicklingError(f"instruction {instruction.name} at byte {position}")
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count + 1:
            raise pickle.UnpicklingError(f"memo {argument} at byte {position}")
        tuples += instruction.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        dicts = dicts or instruction.name in _DICTS
        if dicts and tuples > TUPLES:
            raise pickle.UnpicklingError(f"dicts and more than {TUPLES} tuples")


def _reason(error: Exception) -> str:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


class _Unpickler(pickle.Unpickler):
    """Knows the names that arrays of integers need, under any version of NumPy and Python."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for `module.name`, made anew so that no pickle can alter it for the next one."""
        if (module, name) == ("numpy", "ndarray"):
            return _Name("class")
        if (module, name) == ("numpy", "dtype"):
            return _Name("dtype")
        if module in _NUMPY and name == "_reconstruct":
            return _Name("array")
        if module in _NUMPY and name == "_frombuffer":
            return _Name("frombuffer")
        if (module, name) == ("_codecs", "encode"):
            return _Name("encode")
        if (module, name) == ("__builtin__", "bytes"):
            return _Name("bytes")
        raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside of the file."""
        raise pickle.UnpicklingError("it refers to objects outside of the file")


class _Name:
    """A name that was asked for; calling it, as the REDUCE instruction does, gives one of the stand-ins."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, *arguments: Any) -> Any:
        if self.kind == "dtype":
            return _DType(str(_text(arguments[0])))
        if self.kind == "array":
            return _Array()
        if self.kind == "frombuffer":  # protocol 5: (buffer, dtype, shape, order)
            buffer, dtype, shape, order = arguments
            return _Array().fill(shape, dtype, order == "F", buffer)
        if self.kind == "encode":  # how protocols 0 to 2 write bytes
            text, encoding = arguments
            if encoding not in ("latin1", b"latin1"):
                raise pickle.UnpicklingError("bytes in an unknown encoding")
            return codecs.encode(text, "latin1")
        if self.kind == "bytes" and not arguments:  # protocols 0 to 2 call it for no bytes at all
            return b""
        raise pickle.UnpicklingError("a class is called")


class _DType:
    """The type of an array's elements: integers or booleans, of either byte order."""

    __slots__ = ("order", "text")

    def __init__(self, text: str):
        if text not in {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1"}:
            raise pickle.UnpicklingError(f"an array of type {text[:20]!r}, not of integers")
        self.text, self.order = text, "<"

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array of unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype:
        return np.dtype(self.text).newbyteorder(self.order)


class _Array:
    """An array on its way: made empty, then given its state."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> "_Array":
        if not (isinstance(dtype, _DType) and isinstance(shape, tuple) and isinstance(data, bytes | bytearray)):
            raise pickle.UnpicklingError("an array whose parts are of the wrong kind")
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
            raise pickle.UnpicklingError("an array of impossible shape")
        element = dtype.numpy()
        if math.prod(shape) * element.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
        self.value = np.frombuffer(data, element).reshape(shape, order="F" if fortran else "C")
        self.value.flags.writeable = False
        return self


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _finished(value: Any) -> Any:
    """Returns `value` with the arrays in place of their stand-ins, down to three levels: a list may hold itself."""
    return _finish(value, 3)


def _finish(value: Any, levels: int) -> Any:
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, _Name | _DType | _Array):
        raise pickle.UnpicklingError("a class or an unfinished array in place of a value")
    if levels and isinstance(value, dict):
        return {key: _finish(part, levels - 1) for key, part in value.items()}
    if levels and type(value) in (list, tuple):
        return type(value)(_finish(part, levels - 1) for part in value)
    return value
