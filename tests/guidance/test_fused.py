import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from guidance import fused, masksketch
from guidance.fused import attend_and_compare_fused
from guidance.structure import (
    KERNELS,
    StructureSettings,
    Target,
    layer_weights,
    structure_distance,
)
from maskgit_jax.errors import InputError
from maskgit_jax.model import with_class_token
from maskgit_jax.networks.stacked import attention_inputs
from tests.commands import ROOT
from tests.divergence import definition, make_cases, random


@pytest.fixture(scope="module")
def cases():
    return make_cases()


def on(platform: str, monkeypatch) -> None:
    """Lets `fused` choose as it would on a platform."""
    monkeypatch.setattr(fused, "_platform", lambda: platform)


def test_it_is_the_definition(cases):
    outputs = jax.jit(jax.vmap(attend_and_compare_fused))(
        *(jnp.stack(x) for x in zip(*cases.values(), strict=True))
    )
    for (name, case), attention, distance in zip(cases.items(), *outputs, strict=True):
        expected_attention, expected_distance = definition(*case, "jeffreys")
        np.testing.assert_allclose(attention, expected_attention, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-6, atol=5e-6, err_msg=name)
        assert np.all(distance >= 0), name
        if "identical" in name and "nearly" not in name:
            np.testing.assert_array_equal(distance, 0)


def test_the_tpu_form_is_the_definition(monkeypatch):
    """In Pallas' interpreter; 37 tokens leave most of a block empty."""
    from jax.experimental.pallas import tpu

    on("tpu", monkeypatch)
    query, key, value, target_query, target_key = random(0, 5, 2, 37, 2, 8)
    inputs = query, key + 20, value, target_query, target_key - 30
    with tpu.force_tpu_interpret_mode():
        outputs = jax.jit(jax.vmap(attend_and_compare_fused))(*inputs)
    for i, (attention, distance) in enumerate(zip(*outputs, strict=True)):
        expected_attention, expected_distance = definition(*(x[i] for x in inputs), "jeffreys")
        np.testing.assert_allclose(attention, expected_attention, atol=1e-5)
        np.testing.assert_allclose(distance, expected_distance, rtol=1e-5, atol=1e-5)


def test_the_gpu_form_is_the_definition_to_the_digits_of_float16(monkeypatch):
    """XLA's attention in place of cuDNN's, its results rounded; heads of width 12 are filled up."""
    plain = jax.nn.dot_product_attention

    def attend(query, key, value, *, scale, implementation):
        assert (implementation, query.shape[-1] % 8, query.dtype) == ("cudnn", 0, jnp.float16)
        query, key, value = map(jnp.float32, (query, key, value))  # CPUs do not multiply float16
        return plain(query, key, value, scale=scale).astype(jnp.float16)

    on("cuda", monkeypatch)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    query, key, value, step_query, step_key = random(0, 5, 65, 2, 12)
    query, step_query = query / 12**0.5, step_query / 12**0.5
    inputs = query, key + 5, value, query + step_query / 8, key + step_key / 8 - 3
    attention, distance = jax.jit(attend_and_compare_fused)(*inputs)
    expected_attention, expected_distance = definition(*inputs, "jeffreys")
    assert 0.02 < np.mean(expected_distance) < 0.04
    np.testing.assert_allclose(attention, expected_attention, atol=2e-3)
    np.testing.assert_allclose(distance, expected_distance, atol=2e-3)
    assert np.sqrt(np.mean((distance - expected_distance) ** 2)) < 6e-4


@pytest.mark.parametrize(
    ("platform", "target"), [("tpu", "@tpu_custom_call("), ("cuda", "@__cudnn$fmhaSoftmax(")]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_for_accelerators_at_full_size(platform, target, dtype, monkeypatch):
    """As far as a machine without one can tell: neither the compiler nor a kernel is run."""
    on(platform, monkeypatch)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    inputs = [jax.ShapeDtypeStruct((2, 1025, 16, 48), dtype)] * 5
    traced = jax.jit(jax.vmap(lambda *x: attend_and_compare_fused(*x))).trace(*inputs)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert lowered.count(target) in (1, 2)  # the same call may be a function called twice
    attention, distance = jax.tree.leaves(traced.out_info)
    assert (attention.dtype, distance.dtype) == (dtype, jnp.float32)


def test_tpu_kernels_are_divided_between_devices():
    """The compiler cannot do it: it ends with an error, unless each device is given its share."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "from guidance import fused\n"
        "from maskgit_jax.devices import spread_over_devices\n"
        "fused._platform = lambda: 'tpu'\n"
        "inputs = spread_over_devices([jnp.zeros((4, 65, 2, 8))] * 5)\n"
        "traced = jax.jit(jax.vmap(fused.attend_and_compare_fused)).trace(*inputs)\n"
        "print(traced.lower(lowering_platforms=('tpu',)).as_text())\n"
    )
    flag = "--xla_force_host_platform_device_count=2"
    lowered = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert lowered.returncode == 0, lowered.stderr
    # Two samples of two or three values' heads on each.
    assert "tensor<2x6x128x8xf32>" in lowered.stdout and "tensor<2x4x128x8xf32>" in lowered.stdout


def test_no_kernel_is_imported_with_the_structure_distance():
    """JAX gives notice that parts of Pallas will go: they must not be needed to start."""
    program = "import sys, guidance.structure; print([m for m in sys.modules if 'tal.pallas' in m])"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_kernels_find_the_same_distances(tiny):
    ids = jax.random.randint(jax.random.key(42), (2, 16), 0, 24)
    sketch, sampled = with_class_token(tiny.config, jnp.ones(2, int), ids)
    modules, used = (tiny.transformer, tiny.transformer_params), jnp.array([True, False, True])

    @jax.jit
    def distances():
        target = Target(attention_inputs(*modules, sketch, 3), jnp.array([1.0, 0.0, 2.0]))
        return [structure_distance(*modules, sampled, target, used, kernel=k) for k in KERNELS]

    one, other = distances()
    assert np.min(one) > 1e-3
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_it_does_not_have_is_refused(tiny):
    tokens = jnp.full((1, 17), 24)
    settings = StructureSettings(layer_weights([0], 3))
    options = {"num_steps": 2, "seed": 0, "indices": jnp.arange(1)}
    with pytest.raises(InputError, match="kernel fused has no divergence cross_entropy: choose"):
        masksketch.sample(
            tiny, tokens, settings, divergence="cross_entropy", kernel="fused", **options
        )
    with pytest.raises(InputError, match="kernel=pallas: expected one of jnp, fused"):
        masksketch.sample(tiny, tokens, settings, kernel="pallas", **options)
