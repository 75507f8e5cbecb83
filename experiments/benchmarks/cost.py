"""Operations, bytes and time of a step of structure-guided decoding, by formula.

Operations are those of matrix products, two for a multiplication and its addition. Bytes are what
crosses the device's memory if every product reads its inputs and writes its output once and all
else is fused into a product beside it. Letters: `S` tokens with the class token, `D` width, `M`
width of an MLP's inner layer, `H` heads, `K` codes, `V` vocabulary, `B` batch, `e` bytes of a
number. Two variants: `ours` and `plain` (see `benchmarks.plain`), each for what it really runs;
`layers` are those that are compared, from 0 up.
"""

from collections.abc import Collection
from typing import NamedTuple

from maskgit_jax.config import TransformerConfig

VARIANTS = ("plain", "ours")

Parts = dict[str, int]
"""By part of a step: logits, structure pass, comparison."""

_FLOAT32 = 4


class Device(NamedTuple):
    """What a device can do at most, by its maker.

    Attributes:
      operations: bfloat16 matrix products per second, dense.
      bytes: of its memory, per second.
      chips: devices that share the samples.
    """

    operations: float
    bytes: float
    chips: int = 1


DEVICES = {
    "TPU v5e, 8 chips": Device(197e12, 819e9, chips=8),
    "H100": Device(989e12, 3.35e12),
    "H200": Device(989e12, 4.8e12),
}


def layer_operations(config: TransformerConfig) -> int:
    """Of one layer and one sequence: 2·S·(4·D² + 2·D·M) + 4·S²·D."""
    return 2 * config.sequence_length * _layer_weights(config) + 2 * map_operations(config)


def _layer_weights(config: TransformerConfig) -> int:
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def map_operations(config: TransformerConfig) -> int:
    """Of one layer's maps, queries times keys, and of their product with the values: 2·S²·D."""
    return 2 * config.sequence_length**2 * config.hidden_size


def head_operations(config: TransformerConfig, columns: int) -> int:
    """Of the output head with logits over `columns` ids: 2·S·(D² + D·columns)."""
    return 2 * config.sequence_length * _head_weights(config, columns)


def _head_weights(config: TransformerConfig, columns: int) -> int:
    return config.hidden_size**2 + config.hidden_size * columns


def _columns(config: TransformerConfig, variant: str) -> int:
    """Ids that a variant computes logits of."""
    return config.vocabulary_size if variant == "plain" else config.codebook_size


def step_operations(
    config: TransformerConfig, layers: Collection[int], variant: str, *, guided: bool = True
) -> Parts:
    """Of one step of one sample.

    The plain variant's structure pass asks for all layers, and the compiler drops what follows the
    queries and keys of the highest of `layers`; ours loops over alike rounds, and leaves out the
    highest one's MLP. Attention computes the sample's maps but those of the plain variant's highest
    layer. Ours computes the sketch's anew, the plain variant holds them. Where ours is not
    `guided`, it computes no logits of another class.
    """
    layer, one_map, highest = layer_operations(config), map_operations(config), max(layers)
    plain = variant == "plain"
    logits = config.num_layers * layer + head_operations(config, _columns(config, variant))
    queries_and_keys = 4 * config.sequence_length * config.hidden_size**2
    # Of a single round the compiler makes no loop, and drops what nothing needs.
    last = queries_and_keys if plain or not highest else 2 * queries_and_keys + one_map
    return {
        "logits": (2 if plain or guided else 1) * logits,
        "structure pass": highest * layer + last,
        "comparison": one_map * (1 if plain else 1 + len(layers)),
    }


def task_operations(
    config: TransformerConfig,
    layers: Collection[int],
    variant: str,
    task: str,
    *,
    guided: bool = True,
) -> int:
    """Of one sample's step (`task` "decode"), or of its structure score alone ("score")."""
    parts = step_operations(config, layers, variant, guided=guided)
    return sum(value for name, value in parts.items() if task == "decode" or name != "logits")


def layer_bytes(
    config: TransformerConfig, sequences: int, number_bytes: int, *, maps_in_memory: bool
) -> int:
    """Of one layer: its weights once, and B·S·((20·D + 2·M)·e + H·S·(8 + 2·e)).

    Of the 20 D: queries, keys and values read and write 6, the maps read 2, their product with the
    values 2, `out` 2, the two residuals with their norms 6, the MLP 2. Logits of the maps are
    float32, written and read once; so are the maps, in `e` bytes. A fused kernel for attention
    keeps both on the chip (`maps_in_memory=False`).
    """
    per_token = (20 * config.hidden_size + 2 * config.intermediate_size) * number_bytes
    if maps_in_memory:
        per_token += config.num_heads * config.sequence_length * (2 * _FLOAT32 + 2 * number_bytes)
    return _layer_weights(config) * number_bytes + sequences * config.sequence_length * per_token


def head_bytes(config: TransformerConfig, sequences: int, number_bytes: int, columns: int) -> int:
    """Of the output head: its weights once, and B·S·((4·D)·e + 4·columns); logits are float32."""
    per_token = 4 * config.hidden_size * number_bytes + _FLOAT32 * columns
    weights = _head_weights(config, columns) * number_bytes
    return weights + sequences * config.sequence_length * per_token


def step_bytes(
    config: TransformerConfig,
    layers: Collection[int],
    variant: str,
    batch: int,
    number_bytes: int,
    maps_in_memory: bool = True,
) -> Parts:
    """Of one step of `batch` samples.

    Comparing costs ours the sketch's queries and keys, and its logits written and read; the plain
    variant reads the sketch's maps, and writes and reads the sample's logits and maps.
    """
    plain, tokens = variant == "plain", config.sequence_length
    passes, sequences = (2, batch) if plain else (1, 2 * batch)
    layer, layer_logits = (
        layer_bytes(config, count, number_bytes, maps_in_memory=maps_in_memory)
        for count in (batch, sequences)
    )
    head = head_bytes(config, sequences, number_bytes, _columns(config, variant))
    map_bytes = config.num_heads * tokens**2 * _FLOAT32
    ours = 2 * tokens * config.hidden_size * number_bytes + 2 * map_bytes * maps_in_memory
    return {
        "logits": passes * (config.num_layers * layer_logits + head),
        "structure pass": (max(layers) + 1) * layer,
        "comparison": batch * len(layers) * (5 * map_bytes if plain else ours),
    }


def least_seconds(operations: int | float, moved: int | float, device: Device) -> float:
    """The roofline: what one chip needs at least, limited by its products or by its memory."""
    return max(operations / device.operations, moved / device.bytes)


def step_seconds(
    config: TransformerConfig,
    layers: Collection[int],
    device: Device,
    batch: int,
    maps_in_memory: bool = True,
) -> float:
    """The least time of one step of `batch` samples on one chip, ours in bfloat16."""
    operations = batch * sum(step_operations(config, layers, "ours").values())
    moved = step_bytes(config, layers, "ours", batch, 2, maps_in_memory)
    return least_seconds(operations, sum(moved.values()), device)
