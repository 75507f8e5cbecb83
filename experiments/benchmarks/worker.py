"""What `benchmark` runs in a process of its own: one variant, or the measured product rate.

A fresh process has compiled nothing, and its memory is its own. It answers the questions that it
is sent by name, so that the asker can take turns between variants.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import platform
import re
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from experiments.benchmarks.cost import task_operations
from experiments.benchmarks.plain import PlainMaskSketch
from guidance import masksketch
from guidance.structure import StructureSettings, structure_distance, traced
from maskgit_jax.config import TransformerConfig
from maskgit_jax.errors import InputError
from maskgit_jax.keys import seed_key
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.batched import sample_keys, stream
from maskgit_jax.sampling.loop import decode

TASKS = ("decode", "score")
RATE = "rate"

_CLEAR = Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """What a process does: its role is plain, ours, or `RATE`.

    `dtype` is of ours' weights and products, and of the measured rate; `options` are fields of
    `masksketch.MaskSketch`.
    """

    role: str
    task: str
    model: str
    random_weights: bool
    dtype: str
    batch: int
    settings: StructureSettings
    num_steps: int
    options: dict[str, Any]

    def operations(self, config: TransformerConfig) -> int:
        """Of one sample's step or score, by formula."""
        layers = np.flatnonzero(self.settings.layer_weights).tolist()
        return task_operations(config, layers, self.role, self.task, guided=self.guided)

    @property
    def guided(self) -> bool:
        return bool(np.any(self.settings.guidance_scale))


class Draw(NamedTuple):
    """One run of a variant; the values are ids or distances.

    Compiling includes tracing and lowering. Of a step's seconds the start and the first steps are
    left out. Peak memory is above what was held before.
    """

    compile_seconds: float
    step_seconds: float
    peak_bytes: int
    values: np.ndarray


def serve(connection: Connection, job: Job) -> None:
    """Answers `(question, *arguments)` with `(answer, None)` or `(None, error)`, for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asker's to deal with.
    # Two variants share an accelerator: none may take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    # What was asked for before would still be running while the next function is compiled.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    runner = None
    while True:
        name, *arguments = connection.recv()
        try:
            if name == "machine":
                answer = machine()
            else:
                runner = runner or make_runner(job)
                answer = getattr(runner, name)(*arguments)
            connection.send((answer, None))
        except InputError as error:
            connection.send((None, error))
        except Exception as error:  # out of memory, most likely: the other variants go on
            connection.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


class _Rate:
    """The machine's rate of matrix products."""

    def __init__(self, job: Job):
        config = model_config(job.model).transformer
        width, inner = config.hidden_size, config.intermediate_size
        on_cpu = jax.default_backend() == "cpu"
        # Of an accelerator, the ceiling is bfloat16's whatever the variants use.
        dtype = job.dtype if on_cpu else "bfloat16"
        rows = job.batch * config.sequence_length
        squares = [(n, n, n) for n in ((1024, 2048) if on_cpu else (4096, 8192))]
        keys = jax.random.split(seed_key(0), 2)
        self._factors = {
            f"{dtype} {'x'.join(map(str, shape))}": [
                jax.random.normal(key, sides).astype(dtype)
                for key, sides in zip(keys, (shape[:2], shape[1:]), strict=True)
            ]
            for shape in [*squares, (rows, width, inner), (rows, inner, width)]
        }

    def draw(self, seed: int) -> dict[str, float]:
        """Operations per second of each shape; the seed is for variants alone."""
        return {
            shape: 2 * a.size * b.shape[1] / _product_seconds(a, b)
            for shape, (a, b) in self._factors.items()
        }

    def check(self) -> None:
        """Nothing: that is for variants alone, too."""


_product = jax.jit(jnp.matmul)


def _product_seconds(a: Array, b: Array) -> float:
    """Of one product; long enough together for the clock and the queue not to matter."""
    _product(a, b).block_until_ready()
    count, spent = 1, 0.0
    while spent < 0.2:
        count *= 2
        start = time.perf_counter()
        for _ in range(count):
            result = _product(a, b)
        result.block_until_ready()
        spent = time.perf_counter() - start
    return spent / count


class _Ours:
    """What `PlainMaskSketch` has, by the functions of `guidance.masksketch`."""

    def __init__(self, job: Job, config: TransformerConfig):
        self.method = masksketch.MaskSketch(guided=job.guided, **job.options)
        self.shared = jnp.asarray(job.settings.layer_weights) > 0
        self._transformer, self._settings = Transformer(config), traced(job.settings)

    def start(self, params, tokens, key):
        # No sketch has these ids: none of it is blank paper.
        nowhere, everywhere = jnp.full(len(tokens) - 1, -1), jnp.ones(len(tokens), bool)
        given = nowhere, tokens, everywhere, self._settings, key
        return masksketch.start(self._transformer, params, *given)

    def distance(self, params, used_layers, guide, ids):
        given = params, ids, guide.target, used_layers, self.method.divergence, self.method.kernel
        return structure_distance(self._transformer, *given)


class _Variant:
    def __init__(self, job: Job):
        if jax.local_device_count() > 1:
            raise InputError(
                f"{jax.local_device_count()} devices: the benchmark measures one; hide the others "
                "(CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)"
            )
        self.job, self._compile_seconds = job, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        config = model_config(job.model)
        sizes, transformer = config.transformer, Transformer(config.transformer)
        rng = np.random.default_rng(0)
        labels = jnp.arange(job.batch) % sizes.num_classes
        shape = job.batch, sizes.sequence_length - 1
        self._sketch, self._other = (
            with_class_token(
                config, labels, jnp.asarray(rng.integers(sizes.codebook_size, size=shape))
            )
            for _ in range(2)
        )
        plain = job.role == "plain"
        if job.random_weights:
            params = jax.jit(transformer.init)(seed_key(0), self._sketch[:1])["params"]
            params = stack_layers(params)
        else:
            params = load_model(job.model).transformer_params
        params = jax.tree.map(lambda x: x if plain else x.astype(job.dtype), params)
        self._model = Model(
            config=config,
            transformer=transformer,
            transformer_params=unstack_layers(params) if plain else params,
            tokenizer=Tokenizer(config.tokenizer),
            tokenizer_params={},
        )
        self._params, self._rules = self._model.params_on_devices, _rules(job, sizes)
        self._start = jax.jit(jax.vmap(self._rules.start, (None, 0, 0)))
        self._distance = jax.jit(jax.vmap(self._rules.distance, (None, None, 0, 0)))

    def draw(self, seed: int) -> Draw:
        """A decode, or a score of ids that differ from the sketch at random places."""
        held, compiled = reset_peak(), self._compile_seconds
        guide, state = self._start(self._params, self._sketch, self._keys(seed))
        if self.job.task == "decode":
            values, step_seconds = self._decode(guide, state)
        else:
            strays = np.random.default_rng(seed).random(self._sketch.shape) < 0.5
            ids = jnp.where(strays, self._other, self._sketch)
            # The first one gets its memory from the system, page by page.
            values, step_seconds = [self._score(guide, ids) for _ in range(2)][-1]
        compile_seconds = self._compile_seconds - compiled
        return Draw(compile_seconds, step_seconds, peak_bytes() - held, values)

    def _keys(self, seed: int) -> Key[Array, "B"]:
        return sample_keys(seed, jnp.arange(self.job.batch))

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compile_seconds += seconds

    def _decode(self, guide, state) -> tuple[np.ndarray, float]:
        times, num_steps = [], self.job.num_steps
        given = self._model, self._rules.method, self._rules.shared, guide, state
        for step, state in stream(*given, num_steps=num_steps, every=-(-num_steps // 4)):
            jax.block_until_ready(state)
            times.append((step, time.perf_counter()))
        # The first time is after the start and the first steps.
        (first, began), (last, ended) = times[0], times[-1]
        return np.asarray(state.sampled)[:, 1:], (ended - began) / (last - first)

    def _score(self, guide, ids) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        distances = np.asarray(self._distance(self._params, self._rules.shared, guide, ids))
        return distances, time.perf_counter() - start

    def check(self) -> dict[str, Any]:
        """Operations by formula against XLA's count; the memory that XLA sets aside.

        Of a loop, also of ours' over layers, XLA counts one round: ours is counted with one layer.
        """
        job, config = self.job, self._model.config.transformer
        whole = counted = self._compiled(job, config)
        if job.role == "ours":
            config = dataclasses.replace(config, num_layers=1)
            job = job._replace(settings=dataclasses.replace(job.settings, layer_weights=np.ones(1)))
            counted = self._compiled(job, config)
        return {
            "layers": config.num_layers,
            "formula": job.batch * job.operations(config),
            "xla": (counted.cost_analysis() or {}).get("flops"),
            "temporary_bytes": whole.memory_analysis().temp_size_in_bytes,
        }

    def _compiled(self, job: Job, config: TransformerConfig) -> jax.stages.Compiled:
        """A step or a score by the first layers, as many as `config` has."""
        rules = _rules(job, config)

        def run(params, shared, guide, state):
            if job.task == "score":
                return rules.distance(params, shared, guide, state.sampled)
            given = Transformer(config), params, shared, guide, job.num_steps
            predict, remask, *draw = rules.method(*given)
            return decode(predict, remask, state, 0, 1, *draw)

        begin = jax.vmap(rules.start, (None, 0, 0))
        given = jax.eval_shape(begin, self._params, self._sketch, self._keys(0))
        compiled = jax.jit(jax.vmap(run, (None, None, 0, 0)))
        return compiled.lower(self._params, rules.shared, *given).compile()


def _rules(job: Job, config: TransformerConfig) -> _Ours | PlainMaskSketch:
    """A variant, by functions of one sample: `start`, `method`, `distance`; and what is shared."""
    if job.role == "plain":
        return PlainMaskSketch(config, job.settings, job.options["divergence"])
    return _Ours(job, config)


def make_runner(job: Job) -> _Rate | _Variant:
    """What answers `draw` and `check`."""
    return _Rate(job) if job.role == RATE else _Variant(job)


def machine() -> dict[str, Any]:
    """What is measured on, and how memory is."""
    device = jax.local_devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = platform.processor() or platform.machine()
        with contextlib.suppress(OSError, TypeError):
            kind = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    if device.memory_stats() is not None:
        peak_memory = "the device's allocator; compilation's own trials may be in it"
    elif _CLEAR.exists():
        peak_memory = "the process's largest resident memory, reset before each run"
    else:
        peak_memory = "the process's largest resident memory since it began, compilation included"
    return {
        "platform": device.platform,
        "device": kind,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "peak_memory": peak_memory,
    }


def reset_peak() -> int:
    """Bytes held now; forgets the largest number so far where the system can."""
    gc.collect()
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"]
    if not _CLEAR.exists():
        return 0
    # Freed memory that the C library keeps would hide what a run takes.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
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
