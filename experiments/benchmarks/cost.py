"""Operations, bytes and time of a step of structure-guided decoding, by formula.

Operations are those of matrix products, two for a multiplication and its addition. Bytes are what
crosses the device's memory if every product reads its inputs and writes its output once and all
else is fused into a product beside it. Letters: `S` tokens with the class token, `D` width, `M`
width of an MLP's inner layer, `H` heads, `K` codes, `V` vocabulary, `B` batch, `e` bytes of a
number. Two variants: `ours` and `plain` (see `benchmarks.plain`), each for what it really runs.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from maskgit_jax.config import TransformerConfig

VARIANTS = ("plain", "ours")

Parts = dict[str, int]
"""By part of a step: logits, structure pass, comparison."""

_FLOAT32 = 4


class Device(NamedTuple):
    """By its maker: dense bfloat16 operations and bytes a second, of each of so many chips."""

    operations: float
    bytes: float
    chips: int = 1

    def least_seconds(self, operations: int | float, moved: int | float) -> float:
        """The roofline: what one chip needs at least, limited by its products or its memory."""
        return max(operations / self.operations, moved / self.bytes)


DEVICES = {
    "TPU v5e, 8 chips": Device(197e12, 819e9, chips=8),
    "H100": Device(989e12, 3.35e12),
    "H200": Device(989e12, 4.8e12),
}


def layer_operations(config: TransformerConfig) -> int:
    """Of one layer and one sequence: 2·S·(4·D² + 2·D·M) + 4·S²·D."""
    return 2 * config.sequence_length * _layer_weights(config) + 2 * _map_operations(config)


def _layer_weights(config: TransformerConfig) -> int:
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def _map_operations(config: TransformerConfig) -> int:
    """Of one layer's maps, queries times keys, and of their product with the values: 2·S²·D."""
    return 2 * config.sequence_length**2 * config.hidden_size


def head_operations(config: TransformerConfig, columns: int) -> int:
    """Of the output head with logits over `columns` ids: 2·S·(D² + D·columns)."""
    return 2 * config.sequence_length * config.hidden_size * (config.hidden_size + columns)


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


class Step(NamedTuple):
    """One step of a batch.

    `layers` are those that are compared, from 0 up. Without `guided`, ours computes no logits of
    another class.
    """

    config: TransformerConfig
    layers: Collection[int]
    variant: str
    batch: int = 1
    guided: bool = True

    @property
    def columns(self) -> int:
        """Ids that the variant computes logits of."""
        plain = self.variant == "plain"
        return self.config.vocabulary_size if plain else self.config.codebook_size

    def operations(self, task: str = "decode") -> Parts:
        """Of the step ("decode"), or of its structure score alone ("score").

        The plain variant's structure pass asks for all layers, and the compiler drops what follows
        the queries and keys of the highest of `layers`; ours loops over alike rounds, and leaves
        out the highest one's MLP. Attention computes the sample's maps but those of the plain
        variant's highest layer. Ours computes the sketch's anew, the plain variant holds them.
        """
        config, plain, highest = self.config, self.variant == "plain", max(self.layers)
        layer, one_map = layer_operations(config), _map_operations(config)
        logits = config.num_layers * layer + head_operations(config, self.columns)
        queries_and_keys = 4 * config.sequence_length * config.hidden_size**2
        # Of a single round the compiler makes no loop, and drops what nothing needs.
        last = queries_and_keys if plain or not highest else 2 * queries_and_keys + one_map
        passes = 0 if task == "score" else 2 if plain or self.guided else 1
        return {
            "logits": self.batch * passes * logits,
            "structure pass": self.batch * (highest * layer + last),
            "comparison": self.batch * one_map * (1 if plain else 1 + len(self.layers)),
        }

    def moved(self, number_bytes: int, maps_in_memory: bool = True) -> Parts:
        """Bytes of the step.

        Of the output head: its weights once, and B·S·(4·D·e + 4·columns), logits being float32.
        Comparing costs ours the sketch's queries and keys, and its logits written and read; the
        plain variant reads the sketch's maps, and writes and reads the sample's logits and maps.
        """
        config, plain = self.config, self.variant == "plain"
        tokens, width = config.sequence_length, config.hidden_size
        passes, sequences = (2, self.batch) if plain else (1, 2 * self.batch)
        layer, layer_logits = (
            layer_bytes(config, count, number_bytes, maps_in_memory=maps_in_memory)
            for count in (self.batch, sequences)
        )
        head = width * (width + self.columns) * number_bytes
        head += sequences * tokens * (4 * width * number_bytes + _FLOAT32 * self.columns)
        map_bytes = config.num_heads * tokens**2 * _FLOAT32
        ours = 2 * tokens * width * number_bytes + 2 * map_bytes * maps_in_memory
        return {
            "logits": passes * (config.num_layers * layer_logits + head),
            "structure pass": (max(self.layers) + 1) * layer,
            "comparison": self.batch * len(self.layers) * (5 * map_bytes if plain else ours),
        }

    def least_seconds(self, device: Device, *moved: Any) -> float:
        """On one chip; `moved` as for that."""
        operations, moved_bytes = self.operations().values(), self.moved(*moved).values()
        return device.least_seconds(sum(operations), sum(moved_bytes))
