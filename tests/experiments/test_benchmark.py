"""`experiments.benchmark`: its formulas, its plain variant, its figures."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import Flags
from experiments.benchmarks import cost, tables
from experiments.benchmarks.plain import PlainMaskSketch, plain_pass
from experiments.benchmarks.worker import RATE, Job, Variant, memory, reset_peak
from guidance import masksketch
from guidance.settings import GuidanceSettings
from guidance.structure import StructureSettings, layer_weights, structure_distance
from maskgit_jax.config import TransformerConfig, write_config
from maskgit_jax.model import with_class_token
from maskgit_jax.networks.stacked import unstack_layers
from maskgit_jax.networks.transformer import SelfAttention, Transformer
from maskgit_jax.sampling.batched import decode_batch, sample_keys
from tests.commands import ROOT, assert_refused
from tests.conftest import make_model

SMALL = TransformerConfig(
    codebook_size=24,
    num_classes=5,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    intermediate_size=32,
    sequence_length=17,
)
WIDE = dataclasses.replace(
    SMALL, num_layers=2, hidden_size=64, intermediate_size=256, sequence_length=65
)


def test_operations_counted_by_hand():
    """17 tokens of width 16: four products 16 x 16, two 16 x 32, two of maps."""
    dense = 17 * 2 * (4 * 16 * 16 + 2 * 16 * 32)
    maps = 2 * 17 * 17 * 16
    layer = dense + 2 * maps
    assert cost.layer_operations(SMALL) == layer == 88_128
    # A head over all 30 ids, and over the 24 codes.
    full, codes = (17 * 2 * (16 * 16 + 16 * columns) for columns in (30, 24))
    queries_and_keys = 17 * 2 * 2 * 16 * 16
    assert cost.Step(SMALL, [0, 2], "plain").operations() == {
        "logits": 2 * (3 * layer + full),
        "structure pass": 2 * layer + queries_and_keys,
        "comparison": maps,
    }
    ours = cost.Step(SMALL, [0, 2], "ours").operations()
    assert ours["logits"] == 2 * (3 * layer + codes)
    assert ours["comparison"] == 3 * maps
    unguided = cost.Step(SMALL, [0, 2], "ours", guided=False).operations()
    assert unguided["logits"] == 3 * layer + codes
    score = cost.Step(SMALL, [0, 2], "ours").operations("score")
    assert sum(score.values()) == 2 * layer + 2 * queries_and_keys + 4 * maps
    # A single round is no loop.
    score = cost.Step(SMALL, [0], "ours").operations("score")
    assert sum(score.values()) == queries_and_keys + 2 * maps


def test_bytes_counted_by_hand():
    weights = 4 * 16 * 16 + 2 * 16 * 32
    vectors, maps = 17 * (20 * 16 + 2 * 32), 2 * 17 * 17
    layer = cost.layer_bytes(SMALL, 3, 2, maps_in_memory=True)
    assert layer == 2 * weights + 3 * (2 * vectors + maps * (8 + 4))
    on_chip = cost.layer_bytes(SMALL, 3, 2, maps_in_memory=False)
    assert layer - on_chip == 3 * maps * 12
    plain, ours = (cost.Step(SMALL, [0, 2], name, batch=3).moved(4) for name in ("plain", "ours"))
    assert plain["comparison"] == 3 * 2 * 5 * 4 * maps
    assert ours["comparison"] == 3 * 2 * (2 * 4 * 17 * 16 + 2 * 4 * maps)
    # Ours reads the weights once for both classes.
    head = 4 * (16 * 16 + 16 * 30), 4 * (16 * 16 + 16 * 24)
    both = 6 * 17 * 4 * np.array([4 * 16 + 30, 4 * 16 + 24])
    layers = 3 * cost.layer_bytes(SMALL, 6, 4, maps_in_memory=True)
    assert ours["logits"] == layers + head[1] + both[1]
    assert plain["logits"] == layers + 3 * 4 * weights + 2 * head[0] + both[0]


def test_the_roofline_is_the_slower_of_two():
    device = cost.Device(operations=100.0, bytes=10.0)
    assert device.least_seconds(300.0, 20.0) == 3.0
    assert device.least_seconds(300.0, 50.0) == 5.0


def test_the_cost_tables_state_the_formulas():
    configs = {"small": SMALL}
    operations = sum(cost.Step(SMALL, [0, 2], "ours", batch=8).operations().values())
    step = tables.step_table(configs, [0, 2], [8]).splitlines()[-1]
    assert step.startswith("| small | 8 | ")
    assert float(step.split("|")[4].removesuffix(" T ")) == pytest.approx(
        operations / 1e12, abs=0.006
    )
    device = cost.DEVICES["TPU v5e, 8 chips"]
    of_step = cost.Step(SMALL, [0, 2], "ours", batch=32).least_seconds(device, 2)
    # As many as take ten hours at the ceiling, and a tenth of an hour.
    for hours, full, half in ((10, "10.0 h", "20.0 h"), (0.1, "6.0 min", "12.0 min")):
        sketches = round(hours * 3600 / of_step * 32 * 8 / 500)
        table = tables.sketches_table(configs, [0, 2], sketches=sketches, steps=(500,))
        row = next(line for line in table.splitlines() if "v5e" in line).split(" | ")
        assert row[4:6] == [full, half]


def job(config, role: str = "plain", layers=(0, 2)) -> Job:
    weights = layer_weights(layers, config.transformer.num_layers)
    options = {"divergence": "jeffreys", "num_proposals": 1, "kernel": "jnp"}
    guided = GuidanceSettings(
        StructureSettings(layer_weights=weights), 8, options, {"layers": "0,2"}
    )
    return Job(role, Flags(model="small", random_weights=True, batch_size=2), config, guided)


@pytest.mark.slow
def test_the_plain_variant_draws_the_same_tokens():
    tiny = make_model(num_layers=2)
    settings = StructureSettings(
        layer_weights([0, 1], 2), structure_temperature=0.1, confidence_temperature=0.2
    )
    params, config = unstack_layers(tiny.transformer_params), tiny.config.transformer
    sampler = PlainMaskSketch(config, settings, "jeffreys")
    model = dataclasses.replace(tiny, transformer_params=params)
    start = jax.jit(jax.vmap(sampler.start, (None, 0, 0)))
    ids = jax.random.randint(jax.random.key(42), (4, 16), 0, 24)
    tokens = with_class_token(tiny.config, jnp.arange(4), ids)
    indices, seen = jnp.arange(4), []
    for seed in range(3):
        given = start(params, tokens, sample_keys(seed, indices))
        options = {"num_steps": 8, "progress": seen.append, "steps_per_call": 3}
        plain = decode_batch(model, sampler, None, *given, **options).sampled[:, 1:]
        ours = masksketch.sample(tiny, tokens, settings, num_steps=8, seed=seed, indices=indices)
        np.testing.assert_array_equal(plain, ours.ids)
    assert seen == [3, 6, 8] * 3
    assert len({tuple(row) for row in np.asarray(plain).tolist()}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["jeffreys", "cross_entropy"])
def test_the_plain_variant_finds_the_same_distances(tiny, divergence):
    settings = StructureSettings(layer_weights([1], 3))
    params, config = unstack_layers(tiny.transformer_params), tiny.config.transformer
    sampler = PlainMaskSketch(config, settings, divergence)
    ids = jax.random.randint(jax.random.key(42), (2, 2, 16), 0, 24)
    sketch, sampled = with_class_token(tiny.config, jnp.ones((2, 2), int), ids)

    @jax.vmap
    def distance(sketch, sampled):
        guide, _ = sampler.start(params, sketch, jax.random.key(0))
        return sampler.distance(params, None, guide, sampled)

    plain = distance(sketch, sampled)
    used_layers, guide, _ = masksketch.begin(tiny, sketch, settings, seed=0, indices=jnp.arange(2))
    ours = jax.vmap(
        lambda target, ids: structure_distance(
            tiny.transformer, tiny.transformer_params, ids, target, used_layers, divergence
        )
    )(guide.target, sampled)
    np.testing.assert_allclose(plain, ours, rtol=2e-5)
    assert np.std(plain) > 0.01


def test_the_plain_transformer_is_the_released_one(tiny):
    """Flax's attention module and ours: same parameters, same logits."""
    config = tiny.config.transformer
    example = jnp.zeros((17, 16))
    flax = nn.MultiHeadDotProductAttention(config.num_heads)
    shapes = [
        jax.tree.map(jnp.shape, module.init(jax.random.key(0), example, *given))
        for module, *given in ((flax,), (SelfAttention(config), True, None))
    ]
    assert shapes[0] == shapes[1]
    params = unstack_layers(tiny.transformer_params)
    ids = jnp.arange(17) % 24 - 1
    expected = Transformer(config).apply({"params": params}, ids)
    logits, caught = plain_pass(config, params, ids)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert np.shape(caught) == (3, 2, 17, 2, 8)


@pytest.mark.slow
def test_operations_agree_with_what_xla_counts(tiny):
    """XLA also counts what is no product: between a twentieth and a tenth at this width."""
    tokenizer = dataclasses.replace(tiny.config.tokenizer, image_size=16, latent_size=8)
    config = dataclasses.replace(tiny.config, transformer=WIDE, tokenizer=tokenizer)
    for role in ("plain", "ours"):
        found = Variant(job(config, role, layers=(0, 1))).check()
        assert 0.9 < found["formula"] / found["xla"] < 1, role
        assert found["temporary_bytes"] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no such file here")
def test_peak_memory_is_what_a_run_takes():
    held = reset_peak()
    np.ones(2**26, np.uint8)
    # The system counts pages in lots, so not to the byte.
    assert 0.98 * 2**26 <= memory()[1] - held < 1.2 * 2**26
    held = reset_peak()
    assert memory()[1] - held < 2**24


def draws(*steps: float, compiling: float, peak: int = 1000, ids=(1, 2, 3)) -> list[dict]:
    """The first draw compiles, and has figures that must not count."""
    first = {"compile_seconds": compiling, "step_seconds": 1.0, "peak_bytes": 1, "values": [0]}
    more = {"compile_seconds": 0.0, "peak_bytes": peak, "values": np.array(ids)}
    return [first] + [more | {"step_seconds": step} for step in steps]


MACHINE = {"device": "a chip", "cores": 2, "jax": "1"}


def test_figures_of_a_case(tiny):
    check = {"layers": 3, "formula": 90, "xla": 100.0, "temporary_bytes": 400}
    rates = [{"a": 5e9, "b": 5e9}, {"a": 1e6, "b": 3e6}, {"a": 1e6, "b": 4e6}, {"a": 9e6, "b": 3e6}]
    measured = {
        RATE: {"draws": rates},
        "plain": {"draws": draws(2.0, 4.0, 4.0, compiling=40.0), "check": check},
        "ours": {
            "draws": draws(1.0, 3.0, 1.0, compiling=4.0, peak=250, ids=(1, 5, 3)),
            "check": check | {"temporary_bytes": 100},
        },
    }
    case = tables.summary(job(tiny.config), MACHINE, measured)
    found = case["figures"]
    assert found["matrix_products"] == {"best": 3e6, "shapes": {"a": 1e6, "b": 3e6}}
    plain, ours = found["variants"]["plain"], found["variants"]["ours"]
    assert (plain["compile_seconds"], ours["compile_seconds"]) == (40.0, 4.0)
    assert (plain["step_seconds"], ours["step_seconds"]) == (4.0, 1.0)
    assert plain["step_seconds_per_sample"] == 2.0
    assert plain["sample_seconds"] == 2.0 * case["full_steps"]
    operations = sum(cost.Step(SMALL, [0, 2], "plain", batch=2).operations().values())
    assert plain["operations"] == operations
    assert plain["share_of_rate"] == pytest.approx(operations / 4 / 3e6)
    assert plain["check"]["ratio"] == 0.9
    assert found["ratios"] == {
        "compile_seconds": 0.1,
        "peak_bytes": 0.25,
        "temporary_bytes": 0.25,
        # Neighbours: 1/2, 3/4, 1/4.
        "step_seconds": 0.5,
        "step_seconds_least": 0.25,
        "step_seconds_most": 0.75,
    }
    assert found["equality"] == {"seeds": 3, "tokens": 9, "equal_tokens": 6}


def test_a_variant_that_failed_leaves_the_other(tiny):
    check = {"layers": 3, "formula": 90, "xla": None, "temporary_bytes": 400}
    measured = {
        RATE: {"error": "lost"},
        "plain": {"error": "out of memory"},
        "ours": {"draws": draws(1.0, compiling=9.0), "check": check},
    }
    case = tables.summary(job(tiny.config), MACHINE, measured)
    assert case["figures"].keys() == {"matrix_products", "variants"}
    assert case["figures"]["variants"]["ours"]["share_of_rate"] is None
    table = tables.case_table(case)
    assert "| time per step | – | 1 s |" in table
    assert "plain failed: out of memory" in table
    assert "| small | 2 | – | 1 s | – | – | – |" in tables.cases_table([case])


def test_bad_flags_are_refused(tmp_path):
    cases = {
        "variant": (
            ["--variants=plain,fast"],
            "--variants=plain,fast: expected one of plain, ours",
        ),
        "repeats": (["--repeats=0"], "repeats"),
        "steps": (["--num_steps=3"], "--num_steps=3: expected 4 or more"),
        "paper": (["--paper_weight=0.5"], "--paper_weight: the plain variant has none"),
        "tempered": (["--token_temperature=0.5"], "--token_temperature: the plain variant"),
        "batches": (["--batch_sizes=8,0"], "--batch_sizes=8,0: expected a whole number, 1 or more"),
        "proposals": (["--num_proposals=2"], "--num_proposals: the benchmark knows"),
        "model": (["--model=nowhere"], "no model 'nowhere'"),
        "files": (["--model=imagenet256"], "--random_weights measures without its files"),
    }
    no_address = "import os; os.environ |= {'MASKGIT_BASE_URL': 'none', 'MASKGIT_CACHE': 'cache'}"
    assert_refused("benchmark", cases, cwd=tmp_path, prepare=no_address)


@pytest.mark.slow
def test_the_command(tmp_path, tiny):
    """From flags to tables, each variant in a process of its own."""
    write_config(tmp_path / "config.json", tiny.config)
    arguments = [f"--model={tmp_path}", "--random_weights", "--batch_size=2", "--repeats=2"]
    result = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *arguments, "--output_dir=out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (case,) = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    figures = case["figures"]
    assert case["machine"]["platform"] == "cpu" and case["batch"] == 2
    assert figures["equality"] == {"seeds": 2, "tokens": 64, "equal_tokens": 64}
    for variant in figures["variants"].values():
        assert len(variant["step_seconds_each"]) == 2
        assert min(variant["step_seconds_each"]) > 0 and variant["compile_seconds"] > 0
        assert variant["share_of_rate"] == pytest.approx(
            variant["operations"] / variant["step_seconds"] / figures["matrix_products"]["best"]
        )
    assert (tmp_path / "out" / "benchmark.md").read_text().strip() in result.stdout
