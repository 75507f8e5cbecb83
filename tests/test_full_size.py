"""The released size, end to end, on random weights."""

import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskgit_jax
from guidance import masksketch
from guidance.structure import StructureSettings, layer_weights
from maskgit_jax import checkpoint
from maskgit_jax.config import read_config, write_config
from maskgit_jax.model import load_model, parameter_shapes, with_class_token
from maskgit_jax.tokenizer import Tokenizer
from maskgit_jax.transformer import Transformer


@pytest.mark.slow
def test_two_guided_steps_of_the_256_model(tmp_path, capsys):
    """Writes random weights in the released format, loads them with the real loader, decodes."""
    config = read_config(Path(maskgit_jax.__file__).parent / "data" / "imagenet256.json")
    rng = np.random.default_rng(0)
    ids = jax.ShapeDtypeStruct((1, 257), jnp.int32)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    sizes = []
    for name, module, example in (
        ("maskgit", Transformer(config.transformer), ids),
        ("tokenizer", Tokenizer(config.tokenizer), images),
    ):
        params = jax.tree.map(
            lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32),
            parameter_shapes(module, example),
        )
        sizes.append(sum(x.size for x in jax.tree.leaves(params)))
        checkpoint.write_checkpoint(tmp_path / f"{name}_checkpoint", params)
    write_config(tmp_path / "config.json", config)
    # Released: 227 M together, of them the transformer 172.5 M and the tokenizer 54.5 M.
    assert [round(size / 1e6, 1) for size in sizes] == [172.5, 54.5]

    clock = [time.perf_counter()]
    model = load_model(tmp_path)
    clock.append(time.perf_counter())
    sketch = jnp.asarray(rng.uniform(size=(1, 256, 256, 3)), jnp.float32)
    tokens = with_class_token(model.config, jnp.array([35]), model.encode(sketch))
    settings = StructureSettings(layer_weights=layer_weights([1, 3, 16, 20, 21, 22], 24))
    times = []
    samples = masksketch.sample(
        model,
        tokens,
        settings,
        num_steps=2,
        seed=0,
        indices=jnp.arange(1),
        steps_per_call=1,
        progress=lambda done: times.append(time.perf_counter()),
    )
    pictures = model.decode(samples.ids)
    assert pictures.shape == (1, 256, 256, 3) and bool(jnp.all(jnp.isfinite(pictures)))
    assert np.all((samples.ids >= 0) & (samples.ids < 1024))
    assert np.isfinite(samples.structure_distance[0]) and samples.structure_distance[0] > 0
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"\nfull size, 256 px: load {clock[1] - clock[0]:.1f} s, first step with compilation "
            f"{times[1] - times[0]:.1f} s, next step {times[2] - times[1]:.1f} s, "
            f"peak memory of the process {peak:.1f} GiB"
        )
