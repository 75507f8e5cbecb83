"""Operations, bytes and time of a step of structure-guided decoding, by formula.

Operations are those of matrix products, two for a multiplication and its addition. Bytes are what
crosses the device's memory if every product reads its inputs and writes its output once and all
else is fused into a product beside it. Letters: `S` tokens with the class token, `D` width, `M`
width of an MLP's hidden layer, `H` heads, `K` codes, `V` vocabulary, `B` batch, `e` bytes of a
number. Two variants: `ours` and `plain` (see `benchmark_plain`), each for what it really runs.
"""

from collections.abc import Collection, Mapping
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
    tokens, width = config.sequence_length, config.hidden_size
    dense = 2 * tokens * (4 * width**2 + 2 * width * config.intermediate_size)
    return dense + 2 * map_operations(config)


def map_operations(config: TransformerConfig) -> int:
    """Of one layer's maps, queries times keys, and of their product with the values: 2·S²·D."""
    return 2 * config.sequence_length**2 * config.hidden_size


def head_operations(config: TransformerConfig, columns: int) -> int:
    """Of the output head with logits over `columns` ids: 2·S·(D² + D·columns)."""
    width = config.hidden_size
    return 2 * config.sequence_length * (width**2 + width * columns)


def step_operations(
    config: TransformerConfig, layers: Collection[int], variant: str, *, guided: bool = True
) -> Parts:
    """Of one step of one sample.

    The plain variant's structure pass asks for all layers, and the compiler drops what follows the
    queries and keys of the highest of `layers`; ours loops over alike rounds, and leaves out the
    highest one's MLP. Attention makes the sample's maps but those of the plain variant's highest
    layer. Ours makes the sketch's anew, the plain variant holds them.

    Args:
      config: the transformer's.
      layers: those that are compared, from 0 up.
      variant: one of `VARIANTS`.
      guided: false where the guidance scale is 0: ours then makes no logits of another class.
    """
    layer, one_map, highest = layer_operations(config), map_operations(config), max(layers)
    plain = variant == "plain"
    columns = config.vocabulary_size if plain else config.codebook_size
    passes = 2 if plain or guided else 1
    queries_and_keys = 4 * config.sequence_length * config.hidden_size**2
    # Of a single round the compiler makes no loop, and drops what nothing needs.
    last = queries_and_keys if plain or not highest else 2 * queries_and_keys + one_map
    return {
        "logits": passes * (config.num_layers * layer + head_operations(config, columns)),
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
    width, hidden = config.hidden_size, config.intermediate_size
    weights = (4 * width**2 + 2 * width * hidden) * number_bytes
    per_token = (20 * width + 2 * hidden) * number_bytes
    if maps_in_memory:
        per_token += config.num_heads * config.sequence_length * (2 * _FLOAT32 + 2 * number_bytes)
    return weights + sequences * config.sequence_length * per_token


def head_bytes(config: TransformerConfig, sequences: int, number_bytes: int, columns: int) -> int:
    """Of the output head: its weights once, and B·S·((4·D)·e + 4·columns); logits are float32."""
    width = config.hidden_size
    weights = (width**2 + width * columns) * number_bytes
    per_token = 4 * width * number_bytes + _FLOAT32 * columns
    return weights + sequences * config.sequence_length * per_token


def step_bytes(
    config: TransformerConfig,
    layers: Collection[int],
    variant: str,
    *,
    batch: int,
    number_bytes: int,
    maps_in_memory: bool = True,
) -> Parts:
    """Of one step of `batch` samples.

    Comparing costs ours the sketch's queries and keys, and its logits written and read; the plain
    variant reads the sketch's maps, and writes and reads the sample's logits and maps.
    """
    tokens = config.sequence_length
    passes, sequences = (2, batch) if variant == "plain" else (1, 2 * batch)
    columns = config.vocabulary_size if variant == "plain" else config.codebook_size
    logits = passes * (
        config.num_layers
        * layer_bytes(config, sequences, number_bytes, maps_in_memory=maps_in_memory)
        + head_bytes(config, sequences, number_bytes, columns)
    )
    structure = (max(layers) + 1) * layer_bytes(
        config, batch, number_bytes, maps_in_memory=maps_in_memory
    )
    map_floats = config.num_heads * tokens**2
    if variant == "plain":
        comparison = 5 * map_floats * _FLOAT32
    else:
        comparison = 2 * tokens * config.hidden_size * number_bytes
        comparison += 2 * map_floats * _FLOAT32 if maps_in_memory else 0
    return {
        "logits": logits,
        "structure pass": structure,
        "comparison": batch * len(layers) * comparison,
    }


def least_seconds(operations: int | float, moved: int | float, device: Device) -> float:
    """The roofline: what one chip needs at least, limited by its products or by its memory."""
    return max(operations / device.operations, moved / device.bytes)


def step_seconds(
    config: TransformerConfig,
    layers: Collection[int],
    device: Device,
    *,
    batch: int,
    maps_in_memory: bool = True,
) -> float:
    """The least time of one step of `batch` samples on one chip, ours in bfloat16."""
    operations = batch * sum(step_operations(config, layers, "ours").values())
    moved = step_bytes(
        config, layers, "ours", batch=batch, number_bytes=2, maps_in_memory=maps_in_memory
    )
    return least_seconds(operations, sum(moved.values()), device)


def step_table(
    configs: Mapping[str, TransformerConfig], layers: Collection[int], batches: Collection[int]
) -> str:
    """Markdown: operations and bytes of a step, plain in float32 against ours in bfloat16."""
    lines = [
        "| model | batch | operations, plain | ours | bytes, plain, float32 | ours, bfloat16 | "
        "ours, maps on the chip |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in configs.items():
        for batch in batches:
            operations = (
                batch * sum(step_operations(config, layers, variant).values())
                for variant in VARIANTS
            )
            moved = (
                step_bytes(
                    config,
                    layers,
                    variant,
                    batch=batch,
                    number_bytes=number_bytes,
                    maps_in_memory=maps_in_memory,
                )
                for variant, number_bytes, maps_in_memory in (
                    ("plain", 4, True),
                    ("ours", 2, True),
                    ("ours", 2, False),
                )
            )
            cells = [f"{value / 1e12:.2f} T" for value in operations]
            cells += [f"{sum(parts.values()) / 1e9:.1f} GB" for parts in moved]
            lines.append(f"| {name} | {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sketches_table(
    configs: Mapping[str, TransformerConfig],
    layers: Collection[int],
    *,
    batch: int = 32,
    sketches: int = 50_000,
    steps: Collection[int] = (500, 16),
) -> str:
    """Markdown: hours that many sketches take at least, and at half of what the device can do."""
    lines = [
        f"| model | steps | device | a step of {batch} samples on a chip | {sketches:,} sketches | "
        "at half the ceiling | with maps on the chip |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in configs.items():
        for count in steps:
            for device_name, device in DEVICES.items():
                in_memory, on_chip = (
                    step_seconds(config, layers, device, batch=batch, maps_in_memory=where)
                    for where in (True, False)
                )
                batches = count * sketches / (batch * device.chips)
                cells = (
                    f"{in_memory * 1e3:.1f} ms",
                    _duration(in_memory * batches),
                    _duration(2 * in_memory * batches),
                    _duration(on_chip * batches),
                )
                lines.append(f"| {name} | {count} | {device_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
