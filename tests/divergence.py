"""The structure divergence by its definition, and inputs that try what computes it."""

import numpy as np

LENGTH, HEADS, WIDTH = 40, 2, 8


def definition(query, key, value, target_query, target_key, divergence):
    """Attention output [S, H, d] and divergence [H, S] from whole maps, in float64."""
    query, key, value, target_query, target_key = (
        np.asarray(x, np.float64) for x in (query, key, value, target_query, target_key)
    )
    log_p, log_q = (
        logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for logits in (
            np.einsum("ihd,jhd->hij", target_query, target_key),
            np.einsum("ihd,jhd->hij", query, key),
        )
    )
    p, q = np.exp(log_p), np.exp(log_q)
    if divergence == "jeffreys":
        distance = np.sum((p - q) * (log_p - log_q), axis=-1)
    else:
        distance = -np.sum(p * log_q + q * log_p, axis=-1)
    return np.einsum("hij,jhd->ihd", q, value), distance


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def eighths(x):
    """Rounded so that float32 logits are exact: what is left to test is what follows them."""
    return np.round(8 * x) / 8


def make_cases() -> dict[str, tuple]:
    """By name: query, key, value, target's query and key, each [S, H, d]."""
    query, key, value, target_query, target_key = eighths(random(0, 5, LENGTH, HEADS, WIDTH))
    # The first rows attend to one key alone; the target gives that one the lowest logit, by 600.
    far = np.eye(LENGTH, WIDTH, dtype=np.float32)[:, None] * np.ones((HEADS, 1), np.float32)
    offset = 50 * np.arange(1, WIDTH + 1, dtype=np.float32)
    return {
        "random": (query, key, value, target_query, target_key),
        "peaked": (30 * query, key, value, 30 * target_query, target_key),
        "identical": (query, key, value, query, key),
        "peaked, identical": (30 * query, key, value, 30 * query, key),
        "nearly identical": (query, key, value, query, key + eighths(target_key) / 64),
        "underflowing": (far, 600 * far, value, far, -600 * far),
        "offset": (query, key + offset, value, target_query, target_key - offset),
        "nearly identical, offset": (query, key + offset, value, query, key + target_key / 64),
    }
