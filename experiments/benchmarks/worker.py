"""What `benchmark` runs in a process of its own: one variant, or the measured product rate.

A fresh process has compiled nothing, and its memory is its own. It answers the questions that it
is sent by name, so that the asker can take turns between variants.
"""

import ctypes
import dataclasses
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

from experiments.benchmarks.cost import task_operations
from experiments.benchmarks.plain import PlainMaskSketch
from guidance import masksketch
from guidance.structure import StructureSettings, structure_distance, traced
from maskgit_jax.config import TransformerConfig
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.batched import decode_batch, sample_keys
from maskgit_jax.sampling.keys import seed_key
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
            runner = runner or make_runner(job)
            connection.send((getattr(runner, name)(*arguments), None))
        except InputError as error:
            connection.send((None, error))
        except Exception as error:  # out of memory, most likely: the other variants go on
            connection.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


class _Runner:
    """Answers `machine`, `draw` and `check`."""

    def machine(self) -> dict[str, Any]:
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


class _Rate(_Runner):
    """The machine's rate of matrix products."""

    def __init__(self, job: Job):
        config = model_config(job.model).transformer
        width, inner = config.hidden_size, config.intermediate_size
        on_cpu = jax.default_backend() == "cpu"
        # Of an accelerator, the ceiling is bfloat16's whatever the variants use.
        self._dtype = job.dtype if on_cpu else "bfloat16"
        rows = job.batch * config.sequence_length
        squares = [(n, n, n) for n in ((1024, 2048) if on_cpu else (4096, 8192))]
        self._shapes = [*squares, (rows, width, inner), (rows, inner, width)]
        self._product = jax.jit(jnp.matmul)

    def draw(self, seed: int) -> dict[str, float]:
        """Operations per second of each shape."""
        rates = {}
        for shape in self._shapes:
            keys = jax.random.split(seed_key(seed), 2)
            sides = zip(keys, (shape[:2], shape[1:]), strict=True)
            factors = [jax.random.normal(*side).astype(self._dtype) for side in sides]
            rate = 2 * math.prod(shape) / self._seconds(*factors)
            rates[f"{self._dtype} {'x'.join(map(str, shape))}"] = rate
        return rates

    def check(self) -> None:
        """Variants alone have something to be checked."""

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


class _Rules(NamedTuple):
    """A variant by functions of one sample.

    Attributes:
      method: its `batched.Method`.
      shared: what all samples share.
      start: `(params, tokens, key) -> (guide, state)`.
      distance: `(params, shared, guide, ids) -> distances`.
    """

    method: Any
    shared: Any
    start: Callable[..., Any]
    distance: Callable[..., Any]


def _ours(job: Job, config: TransformerConfig) -> _Rules:
    transformer, settings = Transformer(config), traced(job.settings)
    # No sketch has these ids: none of it is blank paper.
    nowhere, everywhere = (
        jnp.full(config.sequence_length - 1, -1),
        jnp.ones(config.sequence_length, bool),
    )
    method = masksketch.MaskSketch(guided=job.guided, **job.options)

    def start(params, tokens, key):
        return masksketch.start(transformer, params, nowhere, tokens, everywhere, settings, key)

    def distance(params, used_layers, guide, ids):
        choices = method.divergence, method.kernel
        return structure_distance(transformer, params, ids, guide.target, used_layers, *choices)

    return _Rules(method, jnp.asarray(job.settings.layer_weights) > 0, start, distance)


def _plain(job: Job, config: TransformerConfig) -> _Rules:
    method = PlainMaskSketch(config, job.settings, job.options["divergence"])
    return _Rules(method, None, method.start, method.distance)


_SAMPLES = (None, None, 0, 0)
"""What has an axis of samples: of `params, shared, guide, state`, the last two."""


class _Variant(_Runner):
    def __init__(self, job: Job):
        self.job, self._compile_seconds = job, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        if jax.local_device_count() > 1:
            raise InputError(
                f"{jax.local_device_count()} devices: the benchmark measures one; hide the others "
                "(CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)"
            )
        config = model_config(job.model)
        self._config, self._rules_of = config.transformer, _plain if job.role == "plain" else _ours
        codes, length = self._config.codebook_size, self._config.sequence_length - 1
        rng = np.random.default_rng(0)
        self._sketch, self._other = (
            with_class_token(
                config,
                jnp.arange(job.batch) % self._config.num_classes,
                jnp.asarray(rng.integers(0, codes, (job.batch, length))),
            )
            for _ in range(2)
        )
        dtype = "float32" if job.role == "plain" else job.dtype
        if job.random_weights:
            init = jax.jit(Transformer(self._config).init)
            params = stack_layers(init(seed_key(0), self._sketch[:1])["params"])
            params = jax.tree.map(lambda x: x.astype(dtype), params)
        else:
            params = load_model(job.model, dtype=dtype).transformer_params
        self._model = Model(
            config=config,
            transformer=Transformer(self._config),
            transformer_params=unstack_layers(params) if job.role == "plain" else params,
            tokenizer=Tokenizer(config.tokenizer),
            tokenizer_params={},
        )
        self._params = self._model.params_on_devices
        self._rules = self._rules_of(job, self._config)
        self._start = jax.jit(jax.vmap(self._rules.start, (None, 0, 0)))
        self._distance = jax.jit(jax.vmap(self._rules.distance, _SAMPLES))

    def draw(self, seed: int) -> Draw:
        """A decode, or a score of ids that differ from the sketch at random places."""
        held, compiled = reset_peak(), self._compile_seconds
        guide, state = self._start(self._params, self._sketch, self._keys(seed))
        run = self._decode if self.job.task == "decode" else self._score
        values, step_seconds = run(seed, guide, state)
        compile_seconds = self._compile_seconds - compiled
        return Draw(compile_seconds, step_seconds, peak_bytes() - held, values)

    def _keys(self, seed: int):
        return sample_keys(seed, jnp.arange(self.job.batch))

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compile_seconds += seconds

    def _decode(self, seed: int, guide, state) -> tuple[np.ndarray, float]:
        times: list[tuple[int, float]] = []
        state = decode_batch(
            self._model,
            self._rules.method,
            self._rules.shared,
            guide,
            state,
            num_steps=self.job.num_steps,
            progress=lambda done: times.append((done, time.perf_counter())),
            steps_per_call=-(-self.job.num_steps // 4),
        )
        # The first report comes after the start and the first steps.
        (first, began), (last, ended) = times[0], times[-1]
        return np.asarray(state.sampled)[:, 1:], (ended - began) / (last - first)

    def _score(self, seed: int, guide, state) -> tuple[np.ndarray, float]:
        strays = np.random.default_rng(seed).random(self._sketch.shape) < 0.5
        given = (
            self._params,
            self._rules.shared,
            guide,
            jnp.where(strays, self._other, self._sketch),
        )
        # The first one gets its memory from the system, page by page.
        jax.block_until_ready(self._distance(*given))
        start = time.perf_counter()
        distances = np.asarray(self._distance(*given))
        return distances, time.perf_counter() - start

    def check(self) -> dict[str, Any]:
        """Operations by formula against XLA's count; the memory that XLA sets aside.

        Of a loop, also of ours' over layers, XLA counts one round: ours is counted with one layer.
        """
        job, config = self.job, self._config
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

    def _compiled(self, job: Job, config: TransformerConfig) -> Any:
        """A step or a score by the first layers, as many as `config` has."""
        rules = self._rules_of(job, config)

        def step(params, shared, guide, state):
            given = Transformer(config), params, shared, guide, job.num_steps
            predict, remask, *draw = rules.method(*given)
            return decode(predict, remask, state, 0, 1, *draw)

        def score(params, shared, guide, state):
            return rules.distance(params, shared, guide, state.sampled)

        begin = jax.vmap(rules.start, (None, 0, 0))
        given = jax.eval_shape(begin, self._params, self._sketch, self._keys(0))
        run = jax.jit(jax.vmap(step if job.task == "decode" else score, _SAMPLES))
        return run.lower(self._params, rules.shared, *given).compile()


def make_runner(job: Job) -> _Rate | _Variant:
    """What answers the questions of a job's asker."""
    return _Rate(job) if job.role == RATE else _Variant(job)


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
