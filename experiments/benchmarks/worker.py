"""What `benchmark` runs in a process of its own: one variant, or the measured product rate.

A fresh process has compiled nothing, and its memory is its own. It answers the questions that it
is sent by name, so that the asker can take turns between variants.
"""

import ctypes
import dataclasses
import functools
import gc
import math
import os
import platform
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.benchmarks.cost import task_operations
from experiments.benchmarks.plain import plain_sampler
from guidance import masksketch
from guidance.masksketch import MaskSketch
from guidance.structure import StructureSettings, structure_distance, traced
from maskgit_jax.checkpoints.checkpoint import parameter_shapes
from maskgit_jax.config import TransformerConfig
from maskgit_jax.errors import InputError
from maskgit_jax.model import (
    Model,
    load_model,
    model_config,
    with_class_token,
)
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.batched import sample_keys
from maskgit_jax.sampling.keys import seed_key
from maskgit_jax.sampling.loop import decode

TASKS = ("decode", "score")
RATE = "rate"

_CLEAR = Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """What a process does.

    Attributes:
      role: plain, ours, or `RATE`.
      task: one of `TASKS`.
      model: as for `load_model`.
      random_weights: draw them instead of loading.
      dtype: of ours' weights and products, and of the measured rate.
      batch: number of samples.
      settings: of the guided decoding.
      num_steps: of a timed decode.
      choices: keyword arguments of `masksketch.sample`, the divergence among them.
    """

    role: str
    task: str
    model: str
    random_weights: bool
    dtype: str
    batch: int
    settings: StructureSettings
    num_steps: int
    choices: dict[str, Any]


class Draw(NamedTuple):
    """One timed run.

    Attributes:
      compile_seconds: what JAX reports of tracing, lowering and compiling in it.
      step_seconds: of a step, or of a score.
      peak_bytes: of memory above what was held before.
      values: ids [B, N], or distances [B, S].
    """

    compile_seconds: float
    step_seconds: float
    peak_bytes: int
    values: np.ndarray


class NoTokenizer(Model):
    """A model whose tokenizer is not there: the benchmark draws ids."""

    def encode(self, images: Float[Array, "b H W 3"]) -> Int[Array, "b N"]:
        """Ids that no sketch has: none of it is blank paper."""
        return jnp.asarray(
            np.full((len(images), self.config.transformer.sequence_length - 1), -1, np.int32)
        )


def serve(connection: Connection, job: Job) -> None:
    """Answers `(question, *arguments)` with `(answer, None)` or `(None, error)`, until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asker's to deal with.
    # Two variants share an accelerator: none may take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    # What was asked for before would still be running while the next function is compiled.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    runner = None
    while (question := connection.recv()) is not None:
        name, *arguments = question
        try:
            runner = runner or make_runner(job)
            connection.send((getattr(runner, name)(*arguments), None))
        except InputError as error:
            connection.send((None, error))
        except Exception as error:  # out of memory, most likely: the other variants go on
            connection.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


class _Rate:
    """The machine's rate of matrix products."""

    def __init__(self, job: Job):
        config = model_config(job.model).transformer
        width, hidden = config.hidden_size, config.intermediate_size
        on_cpu = jax.default_backend() == "cpu"
        # Of an accelerator, the ceiling is bfloat16's whatever the variants use.
        self._dtype = job.dtype if on_cpu else "bfloat16"
        rows = job.batch * config.sequence_length
        sizes = (1024, 2048) if on_cpu else (4096, 8192)
        shapes = [(n, n, n) for n in sizes] + [(rows, width, hidden), (rows, hidden, width)]
        keys = jax.random.split(seed_key(0), 2)
        self._factors = {
            shape: (
                jax.random.normal(keys[0], shape[:2]).astype(self._dtype),
                jax.random.normal(keys[1], shape[1:]).astype(self._dtype),
            )
            for shape in shapes
        }
        self._product = jax.jit(jnp.matmul)

    def hello(self) -> dict[str, Any]:
        return machine()

    def draw(self, seed: int) -> dict[str, float]:
        """Operations per second of each shape; the seed is for variants alone."""
        del seed
        return {
            f"{self._dtype} {'x'.join(map(str, shape))}": 2
            * math.prod(shape)
            / self._seconds(*factors)
            for shape, factors in self._factors.items()
        }

    def _seconds(self, a, b) -> float:
        """Of one product; long enough together for the clock and the queue not to matter."""
        self._product(a, b).block_until_ready()
        count, spent = 1, 0.0
        while spent < 0.2:
            count *= 2
            start = time.perf_counter()
            for _ in range(count):
                result = self._product(a, b)
            result.block_until_ready()
            spent = time.perf_counter() - start
        return spent / count


class _Variant:
    """What both variants share: inputs and measuring."""

    def __init__(self, job: Job):
        self.job, self._compile_seconds = job, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        if jax.local_device_count() > 1:
            raise InputError(
                f"{jax.local_device_count()} devices: the benchmark measures one; hide the others "
                "(CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)"
            )
        self.config = model_config(job.model)
        self.guided = bool(np.any(job.settings.guidance_scale))
        codes, length = self.config.transformer.codebook_size, self.config.tokenizer.latent_size**2
        rng = np.random.default_rng(0)
        self.sketch, self.other = (
            with_class_token(
                self.config,
                jnp.arange(job.batch) % self.config.transformer.num_classes,
                jnp.asarray(rng.integers(0, codes, (job.batch, length))),
            )
            for _ in range(2)
        )

    def hello(self) -> dict[str, Any]:
        return machine()

    def draw(self, seed: int) -> Draw:
        """A decode, or a score of ids that differ from the sketch at random places."""
        held, compiled = reset_peak(), self._compile_seconds
        run = self._decode if self.job.task == "decode" else self._score
        values, step_seconds = run(seed)
        compile_seconds = self._compile_seconds - compiled
        return Draw(compile_seconds, step_seconds, peak_bytes() - held, values)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compile_seconds += seconds

    def _decode(self, seed: int) -> tuple[np.ndarray, float]:
        times: list[tuple[int, float]] = []
        per_call = -(-self.job.num_steps // 4)
        ids = self.sample(
            seed, lambda done: done and times.append((done, time.perf_counter())), per_call
        )
        # The first report comes after the start and the first steps.
        (first, began), (last, ended) = times[0], times[-1]
        return np.asarray(ids), (ended - began) / (last - first)

    def _score(self, seed: int) -> tuple[np.ndarray, float]:
        strays = np.random.default_rng(seed).random(self.sketch.shape) < 0.5
        tokens = jnp.where(strays, self.other, self.sketch)
        target = jax.block_until_ready(self.targets())
        # The first one gets its memory from the system, page by page.
        jax.block_until_ready(self.distance(target, tokens))
        start = time.perf_counter()
        distances = np.asarray(self.distance(target, tokens))
        return distances, time.perf_counter() - start

    def _check(self, config: TransformerConfig, layer_weights, counted, whole) -> dict[str, Any]:
        """Operations by formula against XLA's count; the memory that XLA sets aside."""
        job, layers = self.job, np.flatnonzero(layer_weights).tolist()
        of_one = task_operations(config, layers, job.role, job.task, guided=self.guided)
        return {
            "layers": config.num_layers,
            "formula": job.batch * of_one,
            "xla": (counted.cost_analysis() or {}).get("flops"),
            "temporary_bytes": whole.memory_analysis().temp_size_in_bytes,
        }


class _Plain(_Variant):
    def __init__(self, job: Job):
        super().__init__(job)
        self._sampler = plain_sampler(
            self.config.transformer,
            job.settings,
            num_steps=job.num_steps,
            divergence=job.choices["divergence"],
        )
        if job.random_weights:
            self._params = random_params(self.config.transformer)
        else:
            self._params = unstack_layers(load_model(job.model).transformer_params)

    def sample(self, seed: int, progress: Callable[[int], None], steps_per_call: int):
        return self._sampler.sample(
            self._params, self.sketch, seed=seed, progress=progress, steps_per_call=steps_per_call
        )

    def targets(self):
        return self._sampler.targets(self._params, self.sketch)

    def distance(self, target, tokens):
        return self._sampler.distance(self._params, target, tokens)

    def check(self) -> dict[str, Any]:
        """XLA's view of a step or a score; what was compiled before is not compiled again."""
        sampler, job, params = self._sampler, self.job, self._params
        if job.task == "decode":
            keys = sample_keys(0, jnp.arange(job.batch))
            given = jax.eval_shape(sampler.start, params, self.sketch, keys)
            compiled = sampler.advance.lower(sampler, params, *given, 0, 1).compile()
        else:
            target = jax.eval_shape(sampler.targets, params, self.sketch)
            compiled = sampler.distance.lower(sampler, params, target, self.sketch).compile()
        return self._check(self.config.transformer, job.settings.layer_weights, compiled, compiled)


class _Ours(_Variant):
    def __init__(self, job: Job):
        super().__init__(job)
        if job.random_weights:
            params = stack_layers(random_params(self.config.transformer))
            params = jax.tree.map(lambda x: x.astype(job.dtype), params)
        else:
            params = load_model(job.model, dtype=job.dtype).transformer_params
        self._model = NoTokenizer(
            config=self.config,
            transformer=Transformer(self.config.transformer),
            transformer_params=params,
            tokenizer=Tokenizer(self.config.tokenizer),
            tokenizer_params={},
        )

    def sample(self, seed: int, progress: Callable[[int], None], steps_per_call: int):
        return masksketch.sample(
            self._model,
            self.sketch,
            self.job.settings,
            num_steps=self.job.num_steps,
            seed=seed,
            indices=jnp.arange(self.job.batch),
            progress=progress,
            steps_per_call=steps_per_call,
            **self.job.choices,
        ).ids

    def targets(self):
        indices = jnp.arange(self.job.batch)
        settings = self.job.settings
        return masksketch.begin(self._model, self.sketch, settings, seed=0, indices=indices)[:2]

    def distance(self, target, tokens):
        choices = (self.job.choices[name] for name in ("divergence", "kernel"))
        return masksketch.token_distances(self._model, *target, tokens, *choices)

    def check(self) -> dict[str, Any]:
        """XLA's view: the memory of the whole, and the operations of a model of one layer.

        Of a loop, also of the one over layers, XLA counts one round.
        """
        config, job = self.config.transformer, self.job
        whole = self._compiled(config, job.settings.layer_weights)
        shallow = dataclasses.replace(config, num_layers=1)
        one_layer = self._compiled(shallow, np.ones(1, np.float32))
        return self._check(shallow, np.ones(1), one_layer, whole)

    def _compiled(self, config: TransformerConfig, layer_weights: Float[np.ndarray, "L"]) -> Any:
        """A step or a score by the first layers, as many as `config` has."""
        job, transformer = self.job, Transformer(config)
        settings = traced(dataclasses.replace(job.settings, layer_weights=layer_weights))

        def begin(params, keys):
            nowhere = jnp.full(config.sequence_length - 1, -1)
            region = jnp.ones(config.sequence_length, bool)
            start = functools.partial(masksketch.start, transformer, params, nowhere)
            return jax.vmap(lambda *one: start(one[0], region, settings, one[1]))(self.sketch, keys)

        def step(params, used_layers, guide, state):
            method = MaskSketch(guided=self.guided, **job.choices)
            rules = method(transformer, params, used_layers, guide, job.num_steps)
            predict, remask, *draw = rules
            return decode(predict, remask, state, 0, 1, *draw)

        def score(params, used_layers, guide, state):
            return structure_distance(
                transformer,
                params,
                state.sampled,
                guide.target,
                used_layers,
                divergence=job.choices["divergence"],
            )

        params, used_layers = self._model.transformer_params, jnp.asarray(layer_weights) > 0
        given = jax.eval_shape(begin, params, sample_keys(0, jnp.arange(job.batch)))
        run = jax.vmap(step if job.task == "decode" else score, in_axes=(None, None, 0, 0))
        return jax.jit(run).lower(params, used_layers, *given).compile()


def random_params(config: TransformerConfig, seed: int = 0) -> dict[str, Any]:
    """Released-form weights as before training: normal 0.02, gains 1, biases 0."""
    rng = np.random.default_rng(seed)
    ids = jax.ShapeDtypeStruct((1, config.sequence_length), jnp.int32)

    def fill(path, shape):
        name = path[-1].key
        if name in ("scale", "bias"):
            return jnp.full(shape.shape, float(name == "scale"), shape.dtype)
        return jnp.asarray(0.02 * rng.standard_normal(shape.shape, np.float32))

    return jax.tree_util.tree_map_with_path(fill, parameter_shapes(Transformer(config), ids))


def machine() -> dict[str, Any]:
    """What is measured on."""
    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "peak_memory": _peak_method(),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _peak_method() -> str:
    """How `reset_peak` and `peak_bytes` know."""
    if jax.local_devices()[0].memory_stats() is not None:
        return "the device's allocator; compilation's own trials may be in it"
    if _CLEAR.exists():
        return "the process's largest resident memory, reset before each run"
    return "the process's largest resident memory since it began, compilation included"


def reset_peak() -> int:
    """Bytes held now; forgets the largest number so far where the system can."""
    gc.collect()
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"]
    if not _CLEAR.exists():
        return 0
    # Freed memory that the C library keeps would hide what a run takes.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    _CLEAR.write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most bytes held since `reset_peak`, or since the process began."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["peak_bytes_in_use"]
    if _CLEAR.exists():
        return _status("VmHWM")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", text)[1])


def make_runner(job: Job) -> _Rate | _Variant:
    """What answers the questions of a job's asker: `hello`, `draw`, and of variants `check`."""
    return {RATE: _Rate, "plain": _Plain, "ours": _Ours}[job.role](job)
