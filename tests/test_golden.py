"""Parity with the published implementations, array by array, on random weights.

`MASKGIT_GOLDEN` names another folder of the same layout; sizes come from its config.json.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import masksketch, structure
from guidance.strokes.base import Iterative, StrokeInputs
from guidance.strokes.context import ContextGuidance
from guidance.strokes.energies import (
    SelfGuidance,
    code_distance_energy,
    identity_energy,
    reweighting,
)
from maskgit_jax.model import Model, load_model
from maskgit_jax.networks.stacked import AttentionInputs, attention_inputs, code_logits
from maskgit_jax.sampling import loop, schedules
from maskgit_jax.sampling.maskgit import maskgit_predict, maskgit_remask
from maskgit_jax.sampling.remdm import ReMdm
from tests.conftest import released

FOLDER = Path(os.environ.get("MASKGIT_GOLDEN", Path(__file__).parent / "golden"))
SCHEDULES = {
    "uniform": "linear",
    "cosine": "cosine",
    "pow2": "square",
    "pow3": "cubic",
    "pow0.5": "square_root",
    "log": "logarithmic",
    "exp": "exponential",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(FOLDER / "model")


def read(name: str) -> dict[str, jax.Array | np.ndarray]:
    with np.load(FOLDER / name) as data:
        return {k: jnp.asarray(v) if v.dtype.kind in "fi" else v for k, v in data.items()}


def cases(name: str) -> list[str]:
    """The cases of a decode file: what stands before '/params' in its keys."""
    return sorted(key.removesuffix("/params") for key in read(name) if key.endswith("/params"))


def close(actual, expected):
    """Within 1e-4 of the array's scale."""
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


def maps_of(inputs: AttentionInputs):
    """Softmax maps, [L, *b, H, S, S]."""
    return jax.nn.softmax(jnp.einsum("...qhd,...khd->...hqk", inputs.queries, inputs.keys))


def test_transformer_logits(model):
    golden = read("transformer.npz")
    apply = jax.jit(functools.partial(model.transformer.apply, {"params": released(model)}))
    codes = slice(model.config.transformer.codebook_size)
    for name in ("", "masked_"):
        tokens, expected = golden[f"{name}tokens"], golden[f"{name}logits"]
        close(apply(tokens), expected)
        found = code_logits(model.transformer, model.transformer_params, tokens)
        close(found, expected[..., codes])


def test_attention_maps(model):
    golden = read("transformer.npz")
    num_layers = golden["attention"].shape[1]
    modules = model.transformer, model.transformer_params
    inputs = attention_inputs(*modules, golden["tokens"], num_layers)
    close(maps_of(inputs), golden["attention"].swapaxes(0, 1))


@pytest.mark.slow
def test_tokenizer(model):
    golden = read("tokenizer.npz")
    apply = functools.partial(model.tokenizer.apply, {"params": model.tokenizer_params})
    close(apply(golden["image"], method="latents"), golden["latents"])
    np.testing.assert_array_equal(apply(golden["image"], method="encode"), golden["token_ids"])
    close(apply(golden["token_ids"], method="codes"), golden["quantized"])
    close(apply(golden["token_ids"], method="decode"), golden["reconstruction"])
    close(apply(golden["random_ids"], method="decode"), golden["random_decoded"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    golden = read("schedules.npz")
    ours = schedules.mask_ratio(SCHEDULES[name], golden["ratio"], int(golden["total_unknown"]))
    close(ours, golden[name])


@pytest.mark.parametrize("case", cases("decode_maskgit.npz"))
def test_maskgit_decoding(model, case):
    golden = read("decode_maskgit.npz")
    params = json.loads(str(golden[f"{case}/params"]))
    ids = jnp.asarray(golden[f"{case}/inputs"][0])
    remask = maskgit_remask(
        jnp.sum(ids == loop.MASK_ID),
        num_steps=params["num_iter"],
        temperature=params["choice_temperature"],
        schedule=SCHEDULES[params["schedule"]],
    )
    predict = maskgit_predict(model.transformer, model.transformer_params)
    step = jax.jit(lambda state, t: loop.decode(predict, remask, state, t, t + 1))

    state = loop.DecodeState(ids, ids, jax.random.PRNGKey(params["prng_key_seed"]))
    expected = golden[f"{case}/outputs"][0]
    for t in range(params["start_iter"], params["num_iter"]):
        state = step(state, t)
        np.testing.assert_array_equal(state.sampled, expected[t], err_msg=f"step {t}")


def remdm_params() -> dict[str, dict]:
    """By case; empty in a folder of before ReMDM."""
    name = "decode_remdm.npz"
    return json.loads(str(read(name)["params"])) if (FOLDER / name).exists() else {}


@pytest.mark.parametrize("case", remdm_params())
def test_remdm_posterior(case):
    """At every step of the published loop's own run.

    Its tokens are no use: they depend on how its noise is laid out. Its schedules are of the share
    of unmasked ids, at the time that remains; so its cosine is another curve than MaskGIT's.
    """
    golden, params = read("decode_remdm.npz"), remdm_params()[case]
    ids, outputs, logits, doubts, posterior = (
        golden[f"{case}/{name}"]
        for name in ("ids", "outputs", "logits", "neg_logprobs", "posterior")
    )
    codes, num_steps = params["codebook_size"], params["num_iter"]
    sampler = ReMdm(
        params["eta"],
        # MDLM is ReMDM that masks nothing again.
        remask=params["strategy"].removeprefix("remdm_").replace("mdlm", "rescale"),
        schedule={"uniform": "linear", "cosine": "cosine_alpha"}[params["schedule"]],
    )
    to_fill = ids[0] == loop.MASK_ID

    @jax.jit
    def advance(step, ids, outputs, logits, doubts):
        chance = sampler.mask_probability(step, num_steps, ids, to_fill, doubts)
        found = jnp.where(
            (ids == loop.MASK_ID)[:, None],
            jax.nn.softmax(logits),
            jax.nn.one_hot(ids, codes),
        )
        found = jnp.concatenate([(1 - chance)[:, None] * found, chance[:, None]], axis=-1)
        hide = outputs == loop.MASK_ID
        sampled = jnp.where(hide, 0, outputs)
        return found, sampler.remember(ids, sampled, hide, to_fill, logits, doubts)

    (own,) = sampler.memory(ids[:1])
    own = own[0]
    for t in range(num_steps):
        if sampler.remask == "conf":
            np.testing.assert_allclose(own[1:], doubts[t, 1:], rtol=1e-5, err_msg=f"step {t}")
        found, own = advance(t, ids[t], outputs[t], logits[t, :, :codes], own)
        compared = to_fill
        if params["strategy"] == "mdlm":
            # What the file has of unmasked ids was not used: they stay.
            compared = ids[t] == loop.MASK_ID
            np.testing.assert_array_equal(found[to_fill & ~compared, -1], 0)
        np.testing.assert_allclose(
            found[compared], posterior[t, compared], rtol=0, atol=1e-5, err_msg=f"step {t}"
        )


def test_structure_score():
    golden = read("decode_masksketch.npz")
    maps = golden["score/target_attention"], golden["score/pred_attention"]
    # Products with unit keys are the queries themselves: any map can be given as its logarithm.
    units = jnp.eye(maps[0].shape[-1])[:, None]

    def inputs(maps):
        queries = jnp.swapaxes(jnp.log(maps), 1, 2)
        return AttentionInputs(queries, jnp.broadcast_to(units, queries.shape))

    for number, (target, sampled) in enumerate(zip(*maps, strict=True)):
        distances = structure.layer_distances(inputs(target), inputs(sampled), "cross_entropy")
        close(-distances, golden["score/outputs"][number])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if number % 2 else [])
        for number, case in enumerate(cases("decode_masksketch.npz"))
    ],
)
def test_masksketch_decoding(model, case):
    golden = read("decode_masksketch.npz")
    params = json.loads(str(golden[f"{case}/params"]))
    sketch, start = (
        jnp.asarray(golden[f"{case}/{name}"][0]) for name in ("sketch_tokens", "start_tokens")
    )
    settings = structure.StructureSettings(
        layer_weights=structure.layer_weights(
            params["layers"], model.config.transformer.num_layers
        ),
        lambda_s=params["lambda_s"],
        guidance_scale=params["guidance_scale"],
        max_mask_rate=params["max_mask_rate"],
        min_mask_rate=params["min_mask_rate"],
    )
    modules = model.transformer, model.transformer_params
    num_steps = params["num_iter"]

    @jax.jit
    def run(settings, key):
        other_token = jnp.int32(params["unconditional_class_token"])
        no_paper = jnp.full(sketch.shape[-1] - 1, -1)
        everywhere = jnp.ones(sketch.shape, bool)
        guide = masksketch.make_guide(
            *modules, sketch, start, everywhere, other_token, no_paper, settings
        )
        method = masksketch.MaskSketch(
            divergence="cross_entropy", schedule=SCHEDULES[params["schedule"]]
        )
        used_layers = guide.target.layer_weights > 0
        predict, remask, draw = method(*modules, used_layers, guide, num_steps)
        memory = masksketch.no_distances(start)
        state = loop.DecodeState(start, start, key, memory)
        return loop.decode(predict, remask, state, 0, num_steps, draw)

    state = run(structure.traced(settings), jax.random.PRNGKey(params["prng_key_seed"]))
    np.testing.assert_array_equal(state.sampled, golden[f"{case}/outputs"][0])


def test_guided_logits(model):
    golden = read("transformer.npz")
    hidden = golden["masked_tokens"] == loop.MASK_ID
    guide_ids = jnp.where(hidden, golden["tokens"], loop.MASK_ID)
    logits = jax.jit(functools.partial(code_logits, model.transformer))(
        model.transformer_params, golden["masked_tokens"], guide_ids
    )
    num_codes = model.config.transformer.codebook_size
    close(logits, golden["guided_logits"][..., :num_codes])


def test_edit_energy_and_reweighting(model):
    golden = read("decode_edit.npz")
    energy = code_distance_energy(model.tokenizer_params["quantizer"]["codebook"])
    close(energy, golden["l2_energy"])
    (key,) = (key for key in golden if key.startswith("reweight_l2_conf"))
    confidence = float(key.removeprefix("reweight_l2_conf"))
    weights = reweighting(energy[golden["guidance_tokens"][0, 1:]], confidence)
    close(weights, golden[key][0, 1:])
    np.testing.assert_array_equal(golden[key][0, 0], 1)


@pytest.mark.parametrize("case", ["context", "self_l2", "self_identity", "iterate"])
def test_edit_decoding(model, case):
    golden = read("decode_edit.npz")
    params = json.loads(str(golden["params"]))
    tokens, guide_ids = (jnp.asarray(golden[k][0]) for k in ("inputs", "guidance_tokens"))
    inputs = StrokeInputs(
        guide_ids=guide_ids,
        num_masked=jnp.sum(tokens == loop.MASK_ID),
        temperature=jnp.float32(params["choice_temperature"]),
        # The published loop keeps it in an array of integers: what is below 1 becomes 0.
        confidence=jnp.float32(int(params["confidence"].get(case, 0))),
    )
    codebook = model.tokenizer_params["quantizer"]["codebook"]
    schedule = SCHEDULES[params["schedule"]]
    method, energy = {
        "context": (ContextGuidance(schedule), ()),
        "self_l2": (
            SelfGuidance(schedule),
            code_distance_energy(codebook),
        ),
        "self_identity": (
            SelfGuidance(schedule),
            identity_energy(codebook),
        ),
        "iterate": (Iterative(schedule), ()),
    }[case]
    first, last = params["start_iter"], params["num_iter"]
    modules = model.transformer, model.transformer_params
    predict, remask = method(*modules, energy, inputs, last)
    step = jax.jit(lambda state, t: loop.decode(predict, remask, state, t, t + 1))

    key = jax.random.PRNGKey(params["prng_key_seed"])
    state = loop.DecodeState(tokens, tokens, key)
    if case == "context":
        state = method.start(tokens, inputs, first, last, key)
    expected = golden[f"{case}/outputs"][0]
    for t in range(first, last):
        state = step(state, t)
        drawn = state.sampled[: len(tokens)]
        np.testing.assert_array_equal(drawn, expected[t], err_msg=f"step {t}")
