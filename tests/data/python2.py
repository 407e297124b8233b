"""Pickles as Python 2 and its NumPy write them at protocol 2: texts and the bytes of arrays as `str`."""

import struct

import numpy as np


def dumps(value):
    return b"\x80\x02" + _dump(value) + b"."


def _dump(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(_dump(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_dump, value)) + b"e"
    if isinstance(value, np.ndarray):
        return _dump_array(value)
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    data = value if isinstance(value, bytes) else value.encode()
    return b"T" + struct.pack("<i", len(data)) + data


def _dump_array(array):
    empty = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
    kind, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    state = b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R" + state
    shape = b"(" + b"".join(map(_dump, array.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _dump(array.tobytes()) + b"tb"
