"""The shapes at a model's ends: what a functional model declares, and what a subclassed one shows when it is called."""

import keras


def declared(model: keras.Model, end: str) -> list[keras.KerasTensor]:
    """Return the tensors at a model's `"inputs"` or `"outputs"`; none where it does not tell.

    A subclassed model has the shape that it was first called with, and its outputs for that; the first axis is free.
    """
    tensors = getattr(model, end, None)
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if tensors or len(shapes) != 1 or not shapes[0] or not all(n is None or isinstance(n, int) for n in shapes[0]):
        return list(tensors or [])
    x, training = keras.KerasTensor((None, *shapes[0][1:]), model.input_dtype), {}
    if end == "inputs":
        return [x]
    if model._call_has_training_arg:
        training = {"training": False}
    try:
        y = model.compute_output_spec(x, **training)
    except Exception:  # the user's code, which may need a number of examples, or whole numbers
        return []
    return [y] if isinstance(y, keras.KerasTensor) else []


def example_shape(model: keras.Model, end: str) -> tuple[int | None, ...] | None:
    """Return the shape of one example at an end that has one tensor; None at others."""
    tensors = declared(model, end)
    return tuple(tensors[0].shape[1:]) if len(tensors) == 1 else None
