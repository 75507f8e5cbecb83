import json
from pathlib import Path

import pytest
from absl import flags

from experiments.app import guidance_flags
from maskgit_jax.config import read_config, write_config
from maskgit_jax.editing import inpaint
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import KNOBS, read_layers
from maskgit_jax.model import model_config
from tests.commands import TESTS

GOLDEN = TESTS / "golden" / "model" / "config.json"

RELEASED = {
    "num_steps": 500,
    "layers": "1,3,16,20,21,22",
    "lambda_s": 0.9,
    "guidance_scale": 0.6,
    "max_mask_rate": 0.95,
    "min_mask_rate": 0.35,
    "structure_temperature": 0.0,
    "confidence_temperature": 0.0,
    "paper_weight": 1.0,
    "token_temperature": 1.0,
    "guidance_power": 0.0,
    "divergence": "jeffreys",
    "num_proposals": 1,
}


def write(folder: Path, **changes) -> Path:
    """The golden model's configuration, changed, in a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(GOLDEN.read_text()) | changes))
    return path


@pytest.mark.parametrize("name", ["demo", "imagenet256", "imagenet512"])
def test_packaged_models_have_every_knob(name):
    presets = model_config(name).presets
    assert {method: set(knobs) for method, knobs in presets.items()} == {
        method: set(knobs) for method, knobs in KNOBS.items()
    }


def test_the_released_settings_are_those_of_the_papers():
    small, large = (model_config(f"imagenet{size}").presets for size in (256, 512))
    assert small["masksketch"] == large["masksketch"] == RELEASED
    assert (small["maskgit"]["num_steps"], large["maskgit"]["num_steps"]) == (8, 12)
    plain = {"temperature": 4.5, "token_temperature": 1.0}
    assert small["edit"] == {"num_steps": 8, **plain}
    assert large["edit"] == {"num_steps": 12, **plain}
    halton = {"num_steps": 32, "schedule": "arccos", "sharpness": 1.0, "token_temperature": 1.0}
    assert small["halton"] == halton
    remdm = {"num_steps": 32, "schedule": "linear", "token_temperature": 0.8, "eta": 0.05}
    assert small["remdm"].items() >= remdm.items() and large["remdm"] == small["remdm"]


def test_presets_belong_to_the_model_whatever_it_is_called(tmp_path):
    """A model folder of the released size is an ImageNet model, and others are like the demo."""
    for size in (256, 512):
        named = model_config(f"imagenet{size}")
        write_config(tmp_path / "config.json", named)
        data = json.loads((tmp_path / "config.json").read_text())
        del data["presets"]
        (tmp_path / "config.json").write_text(json.dumps(data))
        config = model_config(tmp_path)
        assert config.presets == named.presets
    flags.FLAGS(["test", f"--model={tmp_path}"])
    try:
        record = guidance_flags.read(config).record
        assert {name: record[name] for name in RELEASED} == RELEASED
        assert inpaint.chosen_settings(config, None, None) == (12, 4.5, 1.0)
        flags.FLAGS(["test", "--sampler=fast"])
        fast = guidance_flags.read(config).record
        assert (fast["num_steps"], fast["num_proposals"], fast["layers"]) == (
            16,
            4,
            RELEASED["layers"],
        )
    finally:
        flags.FLAGS.unparse_flags()
        for name in ("model", "sampler"):
            flags.FLAGS[name].unparse()
    assert read_config(GOLDEN).presets == model_config("demo").presets


def test_a_model_s_own_presets_hold_and_the_others_are_filled_in(tmp_path):
    own = {"masksketch": {"lambda_s": 0.5, "layers": "1,3"}, "maskgit": {"temperature": 7}}
    config = read_config(write(tmp_path, presets=own))
    demo = model_config("demo").presets
    assert config.presets == demo | {
        "masksketch": demo["masksketch"] | own["masksketch"],
        "maskgit": demo["maskgit"] | own["maskgit"],
    }
    write_config(tmp_path / "copy.json", config)
    assert read_config(tmp_path / "copy.json") == config
    assert json.loads((tmp_path / "copy.json").read_text())["presets"] == config.presets


@pytest.mark.parametrize(
    "presets, words",
    [
        ([], "presets is no object"),
        ({"maskgit": 8}, "presets is no object"),
        ({"muse": {}}, "no method 'muse'"),
        ({"maskgit": {"sharpness": 1.0}}, "no knob presets.maskgit.sharpness"),
        ({"maskgit": {"num_steps": 0}}, "presets.maskgit.num_steps=0: expected a whole number"),
        ({"maskgit": {"num_steps": 8.0}}, "num_steps=8.0: expected a whole number from 1"),
        ({"maskgit": {"num_steps": True}}, "num_steps=True"),
        ({"maskgit": {"temperature": "hot"}}, "temperature=hot: expected 0 to 1e+06"),
        ({"maskgit": {"temperature": float("nan")}}, "temperature=nan"),
        ({"halton": {"schedule": "sine"}}, "presets.halton.schedule=sine: expected one of cosine"),
        ({"halton": {"schedule": ["cosine"]}}, "schedule=['cosine']"),
        ({"remdm": {"remask": "loop"}}, "presets.remdm.remask=loop"),
        ({"masksketch": {"lambda_s": 1.5}}, "presets.masksketch.lambda_s=1.5: expected 0 to 1"),
        ({"masksketch": {"divergence": "kl"}}, "expected one of jeffreys, cross_entropy"),
        ({"masksketch": {"layers": "4"}}, "layer 4 is out of range: the model has 0 to 3"),
        ({"masksketch": {"layers": "1,1"}}, "layers [1, 1] name one twice"),
        ({"masksketch": {"layers": "middle"}}, "all, early or late"),
        ({"masksketch": {"layers": [1, 3]}}, "expected text, such as 'all' or '1,3,16'"),
        ({"masksketch": {"min_mask_rate": 0.9, "max_mask_rate": 0.5}}, "mask rates fall from 0.5"),
        ({"masksketch_fast": {"max_mask_rate": 0}}, "presets.masksketch_fast: mask rates"),
        ({"stroke": {"confidence": -0.1}}, "presets.stroke.confidence=-0.1"),
    ],
)
def test_presets_that_do_not_fit_are_one_line_with_the_file(tmp_path, presets, words):
    path = write(tmp_path, presets=presets)
    with pytest.raises(InputError) as error:
        read_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message


def test_layers_have_names():
    assert read_layers("all", 5) == [0, 1, 2, 3, 4]
    assert read_layers(" Early", 5) == [0, 1]
    assert read_layers("late", 5) == [2, 3, 4]
    assert read_layers("3,0", 5) == [3, 0]
    with pytest.raises(InputError, match="layers=early: no layers: choose some of 0 to 0"):
        read_layers("early", 1)


@pytest.mark.parametrize(
    ("power", "given", "expected"),
    [
        (4.0, [], 4.0),
        (4.0, ["--guidance_schedule=constant"], 0.0),
        (4.0, ["--guidance_schedule=rising"], 4.0),
        (4.0, ["--guidance_schedule=rising", "--guidance_power=2"], 2.0),
        (0.0, ["--guidance_schedule=rising"], 1.0),
    ],
)
def test_the_guidance_schedule_of_presets_and_flags(tmp_path, power, given, expected):
    presets = {"masksketch": {"guidance_power": power, "layers": "all"}}
    config = read_config(write(tmp_path, presets=presets))
    flags.FLAGS(["test", *given])
    try:
        assert guidance_flags.read(config).settings.guidance_power == expected
    finally:
        flags.FLAGS.unparse_flags()
        for name in ("guidance_schedule", "guidance_power"):
            flags.FLAGS[name].unparse()
