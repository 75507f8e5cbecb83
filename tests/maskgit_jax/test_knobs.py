import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.app.flag_groups import edit_settings
from guidance.masksketch import MaskSketch, SketchPlan
from guidance.settings import guidance_settings
from guidance.strokes.methods import StrokeSettings
from guidance.structure import StructureSettings
from maskgit_jax.config import read_config, write_config
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check, knob, knobs_of, optional, read_layers, resolve
from maskgit_jax.model import model_config
from maskgit_jax.sampling.loop import LoopSettings
from maskgit_jax.sampling.samplers import SAMPLERS
from tests.commands import TESTS

GOLDEN = TESTS / "golden" / "model" / "config.json"

METHODS = {
    "masksketch": (SketchPlan, StructureSettings, MaskSketch),
    "edit": (EditSettings,),
    "stroke": (StrokeSettings,),
    **{name: (LoopSettings, sampler) for name, sampler in SAMPLERS.items()},
}

RELEASED = {
    "num_steps": 500,
    "layers": "1,3,16,20,21,22",
    "lambda_s": 0.9,
    "guidance_scale": 0.6,
    "max_mask_rate": 0.95,
    "min_mask_rate": 0.35,
    "final_passes": 0,
    "final_temperature": 0.6,
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
@pytest.mark.parametrize("method", METHODS)
def test_packaged_models_have_every_knob(name, method):
    config = model_config(name)
    # What computes is no question of the model.
    assert set(config.presets[method]) == set(knobs_of(*METHODS[method])) - {"kernel"}
    assert resolve(config, method, *METHODS[method]).items() >= config.presets[method].items()


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
    assert {name: guidance_settings(config, {}).record[name] for name in RELEASED} == RELEASED
    assert edit_settings(config, None) == EditSettings(12, 4.5, 1.0)
    fast = guidance_settings(config, {}, fast=True).record
    assert (fast["num_steps"], fast["num_proposals"]) == (16, 4)
    assert fast["layers"] == RELEASED["layers"]
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
    ],
)
def test_presets_of_no_method_are_one_line_with_the_file(tmp_path, presets, words):
    path = write(tmp_path, presets=presets)
    with pytest.raises(InputError) as error:
        read_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message


@pytest.mark.parametrize(
    "method, presets, words",
    [
        ("maskgit", {"sharpness": 1.0}, "no knob presets.maskgit.sharpness"),
        ("maskgit", {"num_steps": 0}, "presets.maskgit.num_steps=0: expected a whole number"),
        ("maskgit", {"num_steps": 8.0}, "num_steps=8.0: expected a whole number from 1"),
        ("maskgit", {"num_steps": True}, "num_steps=True"),
        ("maskgit", {"temperature": "hot"}, "temperature=hot: expected a number from 0 to 1000000"),
        ("maskgit", {"temperature": float("nan")}, "temperature=nan"),
        ("halton", {"schedule": "sine"}, "presets.halton.schedule=sine: expected one of cosine"),
        ("halton", {"schedule": ["cosine"]}, "schedule=['cosine']"),
        ("remdm", {"remask": "loop"}, "presets.remdm.remask=loop"),
        ("masksketch", {"lambda_s": 1.5}, "presets.masksketch.lambda_s=1.5: expected a number"),
        ("masksketch", {"divergence": "kl"}, "expected one of jeffreys, cross_entropy"),
        ("masksketch", {"layers": [1, 3]}, "presets.masksketch.layers=[1, 3]: expected text"),
        ("stroke", {"confidence": -0.1}, "presets.stroke.confidence=-0.1"),
    ],
)
def test_presets_that_a_method_cannot_take_are_named(tmp_path, method, presets, words):
    config = read_config(write(tmp_path, presets={method: presets}))
    with pytest.raises(InputError) as error:
        resolve(config, method, *METHODS[method])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "presets, words",
    [
        ({"layers": "4"}, "layer 4 is out of range: the model has 0 to 3"),
        ({"layers": "1,1"}, "layers [1, 1] name one twice"),
        ({"layers": "middle"}, "all, early or late"),
        ({"layers": "all", "min_mask_rate": 0.9, "max_mask_rate": 0.5}, "mask rates fall from 0.5"),
        ({"layers": "all", "max_mask_rate": 0}, "mask rates fall from 0"),
    ],
)
def test_presets_that_do_not_go_together_are_named(tmp_path, presets, words):
    config = read_config(write(tmp_path, presets={"masksketch": presets}))
    with pytest.raises(InputError) as error:
        guidance_settings(config, {})
    assert words in str(error.value) and "\n" not in str(error.value)


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
        (4.0, {}, 4.0),
        (4.0, {"guidance_schedule": "constant"}, 0.0),
        (4.0, {"guidance_schedule": "rising"}, 4.0),
        (4.0, {"guidance_schedule": "rising", "guidance_power": 2.0}, 2.0),
        (0.0, {"guidance_schedule": "rising"}, 1.0),
    ],
)
def test_the_guidance_schedule_of_presets_and_flags(tmp_path, power, given, expected):
    presets = {"masksketch": {"guidance_power": power, "layers": "all"}}
    config = read_config(write(tmp_path, presets=presets))
    assert guidance_settings(config, given).settings.guidance_power == expected
    with pytest.raises(InputError, match="only guidance_schedule=rising has one"):
        guidance_settings(config, {"guidance_power": 2.0, "guidance_schedule": "constant"})


@dataclasses.dataclass(frozen=True)
class Settings:
    """For the tests below."""

    count: int = knob(3, "How many.", low=1, high=10)
    share: object = knob(0.5, "How much.", low=0.0, high=1.0)
    name: str = knob("a", "Which.", choices=("a", "b"))
    other: int = 0


def test_given_settings_come_before_presets_and_those_before_defaults():
    class Config:
        presets = {"first": {"count": 4, "share": 0.25}, "second": {"share": 0.75}}  # noqa: RUF012

    assert resolve(Config, "first", Settings) == {"count": 4, "share": 0.25, "name": "a"}
    assert resolve(Config, ("first", "second"), Settings)["share"] == 0.75
    given = {"share": 1, "name": None}
    assert resolve(Config, "first", Settings, given=given) == {"count": 4, "share": 1, "name": "a"}
    with pytest.raises(InputError, match=r"^no knob shade: expected count, share, name$"):
        resolve(Config, "first", Settings, given={"shade": 1})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"count": 11}, "count=11: expected a whole number from 1 to 10"),
        ({"count": 2.5}, "count=2.5: expected a whole number"),
        ({"share": np.array([0.5, 1.5])}, r"share=\[0.5 1.5\]: expected a number from 0 to 1"),
        ({"share": np.nan}, "share=nan"),
        ({"share": True}, "share=True"),
        ({"name": "c"}, "name=c: expected one of a, b"),
    ],
)
def test_values_that_are_not_allowed_are_named(changes, words):
    check(Settings(count=np.int32(10), share=np.array([0, 1]), other=99))
    with pytest.raises(InputError, match=f"^{words}"):
        check(dataclasses.replace(Settings(), **changes))


def test_optional_knobs_have_no_defaults():
    made = dataclasses.make_dataclass("Made", optional(Settings, leave=("name",)))()
    assert dataclasses.asdict(made) == {"count": None, "share": None}
    assert knobs_of(type(made))["count"] == knobs_of(Settings)["count"]
