"""What accelerators do to products that do not ask for precision, on a CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

PRODUCTS = ("dot_general", "conv_general_dilated")
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call")


def products(function: Callable[..., Any], *args: Any) -> list[tuple[str, Any]]:
    """Every matrix product and convolution that a function runs, and whether it is exact.

    Exact: at the highest precision.
    """
    return list(_products(jax.make_jaxpr(function)(*args).jaxpr))


def _products(jaxpr: Any) -> Iterator[tuple[str, bool]]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation.primitive.name, _is_exact(equation)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


def _is_exact(equation: Any) -> bool:
    highest = jax.lax.Precision.HIGHEST
    return equation.params["precision"] in (highest, (highest, highest))


def as_on_tpu(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of float32 arrays gives where products round their factors to bfloat16.

    Those that ask for the highest precision do not. Loops are not looked into.
    """
    closed = jax.make_jaxpr(function)(*args)

    def run(*leaves):
        (result,) = _evaluate(closed.jaxpr, closed.consts, leaves)
        return result

    return jax.jit(run)(*jax.tree.leaves(args))


def _evaluate(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        given = [read(variable) for variable in equation.invars]
        if name in _CALLS:
            inner = params.get("jaxpr") or params["call_jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, given)
        else:
            if name in PRODUCTS and not _is_exact(equation):
                given = [jax.lax.reduce_precision(x, 8, 7) for x in given]
            results = equation.primitive.bind(*given, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]
