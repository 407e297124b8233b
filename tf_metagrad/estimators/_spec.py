"""Estimators, and schedules of them, written as text, for command lines and configuration files."""

import ast
import dataclasses

from tf_metagrad.estimators._base import Estimator

_LONGEST = 10_000  # characters; Python's parser may crash on text that is nested without end


def parse(text: str) -> Estimator:
    """Return the estimator that `text` names, in Python's notation for a call with plain values.

    Args:
        text: e.g. `"MAML"`, `"BinomMAML(truncation=2)"` or `"BinomTruncMAML(1, 4)"`.

    Raises:
        ValueError: an unknown estimator, arguments that it does not have, or text in another form.

    Example:
        >>> parse("BinomMAML(truncation=2)")
        BinomMAML(truncation=2)
    """
    try:
        return _estimator(_parsed(text.strip()))
    except (SyntaxError, AttributeError, TypeError) as error:
        raise ValueError(
            f"An estimator is a name with plain arguments, such as BinomMAML(truncation=2). Received: {_shown(text)}."
        ) from error


def parse_schedule(text: str) -> dict[int, Estimator]:
    """Return the `{step: estimator}` that `text` describes, in Python's notation for what a dict holds.

    Args:
        text: e.g. `"0: FOMAML, 1000: BinomMAML(1), 2000: MAML"`.

    Raises:
        ValueError: as for `parse`; steps that are not whole numbers, or that come twice; text in another form.

    Example:
        >>> parse_schedule("0: FOMAML, 1000: BinomTruncMAML(1, 4)")
        {0: FOMAML(), 1000: BinomTruncMAML(truncation=1, horizon=4)}
    """
    try:
        entries = _parsed("{" + text + "}")
        steps = [key.value for key in entries.keys]
        estimators = [_estimator(value) for value in entries.values]
    except (SyntaxError, AttributeError, TypeError) as error:
        raise ValueError(
            f'A schedule is steps with estimators, such as "0: FOMAML, 1000: BinomMAML(1)". Received: {_shown(text)}.'
        ) from error
    if not all(type(step) is int for step in steps) or len(set(steps)) < len(steps):
        raise ValueError(f"The steps of a schedule must be whole numbers, each once. Received: {_shown(text)}.")
    return dict(zip(steps, estimators, strict=True))


def _parsed(text: str) -> ast.expr:
    """Return the expression that `text` is; SyntaxError where it is none, or one that is too long or too deep."""
    if len(text) > _LONGEST:
        raise SyntaxError("The text is too long.")
    try:
        return ast.parse(text, mode="eval").body
    except (ValueError, MemoryError, RecursionError) as error:  # a null character, a lone surrogate; nesting
        raise SyntaxError(str(error)) from error


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) < 200 else f"{shown[:200]} ..."


def _estimator(node: ast.expr) -> Estimator:
    """Return what a name or a call stands for; AttributeError or TypeError where it is neither, with plain values."""
    from tf_metagrad import estimators

    known = {name: getattr(estimators, name) for name in estimators.__all__}
    known = {name: value for name, value in known.items() if isinstance(value, type) and value is not Estimator}
    call = ast.Call(node, [], []) if isinstance(node, ast.Name) else node
    name = call.func.id
    try:
        args = [ast.literal_eval(argument) for argument in call.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, MemoryError, RecursionError) as error:
        raise TypeError("An argument is not a plain value.") from error
    if name not in known:
        raise ValueError(f"Unknown estimator. Received: {_shown(name)}. Known: {', '.join(sorted(known))}.")
    try:
        return known[name](*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(field.name for field in dataclasses.fields(known[name])) or "none"
        raise ValueError(f"{name} has the arguments: {takes}. Received: {_shown(ast.unparse(node))}.") from error
