import functools
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.training import loop
from maskgit_jax.errors import InputError
from maskgit_jax.training import train_state
from tests.commands import ROOT

OPTIMIZER = optax.adam(0.1)


def noisy_loss(params, batch, key):
    """The noise is a function of the key that is quick to compile."""
    seed = jax.random.key_data(key)[-1] % 1000
    noise = jnp.sin(jnp.arange(batch.size) * (1.0 + seed)).reshape(batch.shape)
    loss = jnp.mean((params["w"] - batch + noise) ** 2)
    return loss, {"loss": loss, "size": jnp.sum(params["w"] ** 2)}


def batch_at(step: int):
    return np.random.default_rng([0, step]).normal(size=(8, 3)).astype(np.float32)


def fit(directory: Path, num_steps: int = 23, batches=batch_at, **options):
    defaults = {"save_every": 4, "log_every": 5, "key": jax.random.key(7), "export": exported}
    state = train_state.init_state({"w": jnp.ones(3)}, OPTIMIZER)
    update = functools.partial(train_state.update, noisy_loss, OPTIMIZER, ema_decay=0.9)
    options = defaults | options
    return loop.train(directory, update, state, loop.Data(batches), num_steps=num_steps, **options)


def exported(params):
    assert params["w"].shape == (3,)


def records(directory: Path) -> list[dict]:
    """What `measures.jsonl` holds, less the speed."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        assert record.pop("images_per_second", 1) > 0
    return found


def events(directory: Path) -> list[Event]:
    """The events of all files, those of one file after those of the ones before."""
    found = []
    for path in sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its folder and its last state."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, fit(directory, learning_rate=optax.constant_schedule(0.1))


def test_logged_losses_are_means_since_the_last_line(whole):
    directory, _ = whole
    state = train_state.init_state({"w": jnp.ones(3)}, OPTIMIZER)
    step = jax.jit(functools.partial(train_state.update, noisy_loss, OPTIMIZER))
    losses = []
    for i in range(23):
        state, metrics = step(state, batch_at(i), jax.random.key(7))
        losses.append(float(metrics["loss"]))
    found = records(directory)
    assert [record["step"] for record in found] == [5, 10, 15, 20, 23]
    expected = [np.mean(losses[i : i + 5]) for i in range(0, 23, 5)]
    np.testing.assert_allclose([record["loss"] for record in found], expected, rtol=1e-5)
    assert all(abs(record["learning_rate"] - 0.1) < 1e-6 for record in found)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_next_start_goes_on(whole, tmp_path, capsys, number, status):
    """Also: the log of the two starts is that of one, whatever was logged after the save."""

    def interrupted(step):
        # After the save at 12, before the log line of 15: the sums must be saved with the state.
        if step == 13:
            os.kill(os.getpid(), number)
        return batch_at(step)

    before = signal.getsignal(number)
    exports = []
    options = {"learning_rate": optax.constant_schedule(0.1), "export": exports.append}
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, batches=interrupted, **options)
    assert stopped.value.code == status
    assert signal.getsignal(number) == before
    error = capsys.readouterr().err
    saved = int(error.split("saved at step ")[1].split(";")[0])
    assert saved <= 14 and "the same command goes on" in error
    assert (tmp_path / "checkpoints" / str(saved)).is_dir()

    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 0}\n{"step": 2')
    state = fit(tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    jax.tree.map(np.testing.assert_array_equal, exports[-1], whole[1].average)
    assert records(tmp_path) == records(whole[0])

    starts = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert [e.step for e in starts] == [saved + 1]
    scalars = {
        (e.step, value.tag): value.simple_value
        for e in events(tmp_path)
        for value in e.summary.value
        if value.tag == "loss"
    }
    expected = {(r["step"], "loss"): np.float32(r["loss"]) for r in records(whole[0])}
    assert scalars == expected


def test_a_finished_run_exports_again_and_trains_no_more(whole):
    exports = []
    state = fit(whole[0], export=exports.append, batches=batch_at)
    jax.tree.map(np.testing.assert_array_equal, exports, [whole[1].average])
    assert int(state.step) == 23 and len(records(whole[0])) == 5


def test_validation_and_samples_see_the_average_weights(tmp_path, whole):
    pictures = []

    def draw(params):
        pictures.append(np.asarray(params["w"]))
        return np.full((9, 9, 3), 200, np.uint8)

    batches = [batch_at(100), batch_at(101)[:5]]
    key = jax.random.key(1)
    validate = loop.validation(noisy_loss, batches, key, lambda batch: batch + 1)
    hooks = [
        (23, functools.partial(loop.validate, measure=validate)),
        (9, functools.partial(loop.draw, picture_of=draw)),
    ]
    state = fit(tmp_path, hooks=hooks)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
        "0000009.png",
        "0000018.png",
        "0000023.png",
    ]
    np.testing.assert_array_equal(pictures[-1], state.average["w"])
    found = [record for record in records(tmp_path) if "validation_loss" in record]
    assert [record["step"] for record in found] == [23]
    loss = jax.jit(noisy_loss)
    expected = np.mean([loss(state.average, batch + 1, key)[0] for batch in batches])
    np.testing.assert_allclose(found[0]["validation_loss"], expected, rtol=1e-5)


def test_validation_weighs_batches_by_what_their_loss_was_divided_by():
    def loss(params, batch, key):
        return jnp.mean(batch), {"loss": jnp.mean(batch), "weight": 1.0 * batch.size}

    batches = [np.array([1.0, 2.0, 6.0]), np.array([7.0])]
    validate = loop.validation(loss, batches, jax.random.key(0))
    assert validate({}) == {"loss": 4.0}


def test_no_number_ends_the_run_before_it_is_saved(tmp_path):
    def broken(step):
        return batch_at(step) * (np.nan if step == 6 else 1)

    with pytest.raises(InputError, match="no number near step 8"):
        fit(tmp_path, batches=broken)
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert steps == [4]


def test_a_checkpoint_of_other_weights_is_refused(whole):
    state = train_state.init_state({"w": jnp.ones(4)}, OPTIMIZER)
    update = functools.partial(train_state.update, noisy_loss, OPTIMIZER)
    with pytest.raises(InputError, match=r"another model: .*w.* is float32\[3\]") as error:
        loop.train(
            whole[0],
            update,
            state,
            loop.Data(lambda step: np.zeros((8, 4), np.float32)),
            key=jax.random.key(0),
            num_steps=30,
            save_every=5,
            export=exported,
        )
    assert "\n" not in str(error.value)


def test_bad_data_ends_the_run_with_its_own_error(tmp_path):
    def unreadable(step):
        if step == 3:
            raise InputError("nothing there")
        return batch_at(step)

    with pytest.raises(InputError, match="nothing there"):
        fit(tmp_path, batches=unreadable)


DEVICES = """
import functools, json, sys, tempfile
from pathlib import Path
import jax, numpy as np, optax
from experiments.training import loop
from maskgit_jax.training import losses, optimizers, train_state
from maskgit_jax.errors import InputError
from tests.conftest import make_model, released
from tests.commands import ROOT

model = make_model(dropout_rate=0.2)
optimizer = optimizers.make_optimizer(optimizers.learning_rate_schedule(1e-2, 100, 1), 1e-3)

def run(loss, params, batch_at, **options):
    directory = Path(tempfile.mkdtemp())
    loop.train(
        directory,
        functools.partial(train_state.update, loss, optimizer, ema_decay=0.9, **options),
        train_state.init_state(params, optimizer), loop.Data(batch_at), key=jax.random.key(0),
        num_steps=6, save_every=100, log_every=1, export=lambda params: None,
    )
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").open()]

def tokens(step):
    rng = np.random.default_rng(step)
    return rng.integers(24, size=(16, 16), dtype=np.int32), rng.integers(5, size=16, dtype=np.int32)

def pictures(step):
    return np.random.default_rng(step).random((16, 8, 8, 3), np.float32)

masked = functools.partial(losses.masked_token_loss, model.transformer)
quantized = functools.partial(losses.tokenizer_loss, model.tokenizer)
losses = {
    "masked": run(masked, released(model), tokens),
    "accumulated": run(masked, released(model), tokens, accumulate=2),
    "quantized": run(quantized, model.tokenizer_params, pictures),
}
refused = ""
try:
    run(masked, released(model), lambda step: tokens(step)[0][:12])
except InputError as error:
    refused = str(error)
except Exception:
    pass
spread = loop.spread(tokens(0)[0])
shards = sorted({shard.data.shape[0] for shard in spread.addressable_shards})
print(json.dumps([jax.device_count(), shards, losses, refused]))
"""


@pytest.mark.slow
def test_eight_devices_train_like_one():
    def start(devices: int) -> subprocess.Popen:
        flag = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-c", DEVICES],
            env=os.environ | {"XLA_FLAGS": flag},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )

    processes = [start(1), start(8)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    one, eight = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert one[:2] == [1, [16]] and eight[:2] == [8, [2]]
    for name, losses in one[2].items():
        assert len(losses) == 6 and len(set(losses)) == 6
        np.testing.assert_allclose(eight[2][name], losses, rtol=1e-5, err_msg=name)
    assert "batch of 12 cannot be spread over 8 devices" in eight[3]
