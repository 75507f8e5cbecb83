import pytest

from experiments import (
    benchmark,
    edit,
    evaluate,
    generate,
    sketch,
    steps_study,
    sweep,
    train_judge,
    train_transformer,
)
from experiments.app.flag_groups import read_guidance
from experiments.app.flags import parse
from experiments.app.presets import PRESETS, read_preset
from maskgit_jax.errors import InputError
from maskgit_jax.model import model_config


def flags_of(command, *arguments: str):
    return parse(command.Flags, ["command", *arguments])[0]


def test_a_preset_gives_flags_that_are_not_given():
    swept = flags_of(sweep, "--preset=quick", "--lambda_s=1")
    assert (swept.num_steps, swept.lambda_s, swept.guidance_scale) == ([8], [1.0], [0.0, 0.3])
    assert swept.batch_size == 20
    # What it has several values of is a sweep's.
    drawn = flags_of(sketch, "--batch_size=2", "--preset=quick")
    assert (drawn.num_steps, drawn.lambda_s, drawn.batch_size) == (8, None, 2)
    paper = flags_of(sketch, "--preset=paper")
    assert (paper.model, paper.num_steps, paper.layers) == ("imagenet256", 500, "1,3,16,20,21,22")
    demo = flags_of(sweep, "--preset=demo")
    assert (demo.seeds, demo.layers, demo.lambda_s) == ("2", ["all"], [0.0, 0.3, 0.6, 0.8, 1.0])
    assert flags_of(sketch).num_steps is None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_suits_every_guided_command(preset):
    for command in (benchmark, edit, evaluate, sketch, steps_study, sweep):
        assert flags_of(command, f"--preset={preset}").preset == preset
    assert read_preset(preset).keys() <= sweep.Flags.__dataclass_fields__.keys()


def test_unknown_presets_are_refused_with_the_known():
    with pytest.raises(InputError, match="--preset=slow: expected one of demo, paper, quick"):
        flags_of(sketch, "--preset=slow")
    with pytest.raises(InputError, match="preset"):
        flags_of(generate, "--preset=quick")


def test_the_sampler_s_old_name_means_the_same():
    config = model_config("demo")
    records = [
        read_guidance(flags_of(sketch, f"--sampler={name}"), config).record
        for name in ("proposals", "fast")
    ]
    assert records[0] == records[1]
    assert (records[0]["num_steps"], records[0]["num_proposals"]) == (16, 4)


@pytest.mark.parametrize("command", [benchmark, edit, evaluate, generate, sketch, sweep])
def test_an_empty_path_is_refused(command):
    with pytest.raises(InputError, match="--output_dir=: expected a path"):
        flags_of(command, "--output_dir=")


@pytest.mark.parametrize(
    ("command", "argument", "words"),
    [
        (sweep, "--dry_run=maybe", "--dry_run=maybe: expected true or false"),
        (sketch, "--num_sample=3", "there is no --num_sample: did you mean --num_samples?"),
        (sketch, "--colour=red", "there is no --colour: --help shows all"),
        (sketch, "--flagfile=none", "Unable to open flagfile"),
        (evaluate, f"--num_sketches={10**30}", "expected 2147483647 at most"),
        (evaluate, "--num_sketches=inf", "expected a whole number, 5 or more"),
        (train_judge, "--learning_rate=inf", "expected 1e+30 at most"),
        (train_judge, "--learning_rate=nan", "expected a number, 0 or more"),
    ],
)
def test_what_is_wrong_is_named(command, argument, words):
    with pytest.raises(InputError) as error:
        flags_of(command, argument)
    assert str(error.value).endswith(words) or str(error.value).startswith(words)


def test_help_says_defaults_and_how_to_give_several(capsys):
    for command in (sweep, train_transformer, evaluate):
        with pytest.raises(SystemExit) as stopped:
            flags_of(command, "--help")
        assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "--lambda_s Share of structure; the rest is realism. (a number from 0 to 1) Several: with "
        "commas between.",
        "or 1,3,16. Several: with semicolons between.",
        "the model's own: the presets in its config.json.",
        "--lambda_s=0,0.5,0.9,1 \\ --guidance_scale=0,0.6,2",
        "--flip Mirror half of a folder's pictures. On; --noflip turns it off.",
        "--dry_run Print the plan alone. --multihost",
        "--max_ratio=1.33333 Longer",
        "--lambda_s_curve More rows",
        "--seed=0 Random seed",
        "(a number from 0 to 1000000)",
    ):
        assert words in shown, words
