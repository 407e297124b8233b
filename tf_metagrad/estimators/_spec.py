"""Estimators written as text, for command lines and configuration files."""

import ast

from tf_metagrad.estimators._base import Estimator


def parse(text: str) -> Estimator:
    """Return the estimator that `text` names, in Python's notation for a call with plain values.

    Args:
        text: e.g. `"MAML"`, `"BinomMAML(truncation=2)"` or `"BinomTruncMAML(1, 4)"`.

    Raises:
        ValueError: an unknown estimator, arguments that it does not have, or text in another form.

    Example:
        >>> parse("BinomMAML(truncation=2)")
        BinomMAML(truncation=2, rescale=False)
    """
    from tf_metagrad import estimators

    known = {name: getattr(estimators, name) for name in estimators.__all__}
    known = {name: value for name, value in known.items() if isinstance(value, type) and value is not Estimator}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        call = ast.Call(call, [], []) if isinstance(call, ast.Name) else call
        name = call.func.id
        args = [ast.literal_eval(node) for node in call.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(
            f"An estimator is written as a name with plain arguments, such as BinomMAML(truncation=2). Received: {text!r}."
        ) from error
    if name not in known:
        raise ValueError(f"Unknown estimator. Received: {name!r}. Known: {', '.join(sorted(known))}.")
    try:
        return known[name](*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"Wrong arguments for {name}. Received: {text!r}. {error}.") from error
