"""What `benchmark` runs in a process of its own: one variant, or the measured product rate.

A fresh process has compiled nothing, and its memory is its own. It does one draw when it is asked,
so that the asker can take turns between variants.
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
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.benchmarks.cost import Step
from experiments.benchmarks.plain import PlainMaskSketch
from guidance import masksketch
from guidance.masksketch import MaskSketch
from guidance.settings import GuidanceSettings
from guidance.structure import traced
from maskgit_jax.config import ModelConfig
from maskgit_jax.devices import copy_to_devices
from maskgit_jax.errors import InputError, printable
from maskgit_jax.keys import seed_key
from maskgit_jax.model import load_model, with_class_token
from maskgit_jax.networks.stacked import stack_layers, unstack_layers
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.batched import sample_keys
from maskgit_jax.sampling.loop import decode

TASKS = ("decode", "score")
RATE = "rate"

_CLEAR = Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """What a process does: its role is plain, ours, or `RATE`; `flags` are `benchmark.Flags`.

    `--dtype` is of ours' weights and products, and of the measured rate.
    """

    role: str
    flags: Any
    config: ModelConfig
    guided: GuidanceSettings

    @property
    def method(self) -> MaskSketch:
        """Ours."""
        guidance = bool(self.guided.settings.guidance_scale)
        return MaskSketch(guided=guidance, **self.guided.options)

    def operations(self) -> int:
        """Of one step or score of the batch, by formula."""
        layers = np.flatnonzero(self.guided.settings.layer_weights).tolist()
        given = self.config.transformer, layers, self.role, self.flags.batch_size
        return sum(Step(*given, self.method.guided).operations(self.flags.task).values())


def serve(connection: Connection, job: Job) -> None:
    """Answers a seed, or None by the check, with all so far; an error is its last answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asker's to deal with.
    jax.config.update("jax_enable_compilation_cache", False)
    # What was asked for before would still be running while the next function is compiled.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    answers, variant = {"draws": []}, None
    try:
        while True:
            seed = connection.recv()
            if job.role == RATE:
                answers["draws"].append(product_rates(job))
            else:
                variant = variant or Variant(job)
                if seed is None:
                    answers["check"] = variant.check()
                else:
                    answers["draws"].append(variant.draw(seed))
            connection.send(answers)
    except InputError as error:
        connection.send(error)
    except Exception as error:  # out of memory, most likely: the other variants go on
        connection.send({"error": f"{type(error).__name__}: {printable(error)}"})


def machine() -> dict[str, Any]:
    """What is measured on: its name, its software, and how memory is measured."""
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


def product_rates(job: Job) -> dict[str, float]:
    """The machine's operations per second in matrix products, by shape."""
    sizes, on_cpu = job.config.transformer, jax.default_backend() == "cpu"
    width, inner = sizes.hidden_size, sizes.intermediate_size
    # Of an accelerator, the ceiling is bfloat16's whatever the variants use.
    dtype = job.flags.dtype if on_cpu else "bfloat16"
    rows = job.flags.batch_size * sizes.sequence_length
    squares = [(n, n, n) for n in ((1024, 2048) if on_cpu else (4096, 8192))]
    rates = {}
    for shape in (*squares, (rows, width, inner), (rows, inner, width)):
        sides, keys = (shape[:2], shape[1:]), jax.random.split(seed_key(0), 2)
        a, b = (jax.random.normal(*each).astype(dtype) for each in zip(keys, sides, strict=True))
        name = f"{dtype} {'x'.join(map(str, shape))}"
        rates[name] = 2 * a.size * b.shape[1] / _product_seconds(a, b)
    return rates


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


def _programs(job: Job) -> tuple[Callable, Callable, Any]:
    """`start(params, sketch_tokens, keys)`, `run(params, shared, *started, first, last)`; `shared`.

    Both of batches. A score runs no step: it leaves the distances in the states' memory.
    """
    transformer, settings = Transformer(job.config.transformer), job.guided.settings
    if job.role == "plain":
        method = PlainMaskSketch(transformer.config, settings, job.guided.options["divergence"])
        start, shared = method.start, None
    else:
        method, shared = job.method, jnp.asarray(settings.layer_weights) > 0
        settings = traced(settings)

        def start(params, tokens, key):
            # No sketch has these ids: none of it is blank paper.
            nowhere, everywhere = jnp.full(len(tokens) - 1, -1), jnp.ones(len(tokens), bool)
            given = nowhere, tokens, everywhere, settings, key
            return masksketch.start(transformer, params, *given)

    def run(params, shared, guide, state, first_step, last_step):
        predict, remask, *draw = method(transformer, params, shared, guide, job.flags.num_steps)
        if job.flags.task == "decode":
            return decode(predict, remask, state, first_step, last_step, *draw)
        # The compiler drops all that serves the choice of ids.
        logits = jnp.zeros((len(state.ids), transformer.config.codebook_size))
        found = remask(0, state.ids, state.sampled, logits, state.key, *state.memory)
        return state._replace(memory=found[2:])

    run = jax.jit(jax.vmap(run, (None, None, 0, 0, None, None)), donate_argnums=3)
    return jax.jit(jax.vmap(start, (None, 0, 0))), run, shared


class Variant:
    """A variant with its weights and sketches, compiled when it first draws."""

    def __init__(self, job: Job):
        if jax.local_device_count() > 1:
            raise InputError(
                f"{jax.local_device_count()} devices: the benchmark measures one; hide the others "
                "(CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)"
            )
        self._job, self._compile_seconds = job, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        sizes, plain = job.config.transformer, job.role == "plain"
        shape, rng = (2, job.flags.batch_size, sizes.sequence_length - 1), np.random.default_rng(0)
        ids = jnp.asarray(rng.integers(sizes.codebook_size, size=shape))
        labels = jnp.broadcast_to(jnp.arange(job.flags.batch_size) % sizes.num_classes, shape[:2])
        self._sketch, self._other = with_class_token(job.config, labels, ids)
        if job.flags.random_weights:
            init = jax.jit(Transformer(sizes).init)(seed_key(0), self._sketch[:1])
            params = stack_layers(init["params"])
        else:
            params = load_model(job.flags.model).transformer_params
        params = jax.tree.map(lambda x: x if plain else x.astype(job.flags.dtype), params)
        self._params = copy_to_devices(unstack_layers(params) if plain else params)
        self._start, self._run, self._shared = _programs(job)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self._compile_seconds += seconds

    def draw(self, seed: int) -> dict[str, Any]:
        """A decode, or a score of ids that differ from the sketch at random places.

        Compiling includes tracing and lowering. Of a step's seconds the start and the first steps
        are left out. Peak memory is above what was held before; the values are ids or distances.
        """
        held, compiled = reset_peak(), self._compile_seconds
        keys = sample_keys(seed, jnp.arange(self._job.flags.batch_size))
        guide, state = self._start(self._params, self._sketch, keys)
        # Of two scores the first one gets its memory from the system, page by page.
        num_steps = 2
        if self._job.flags.task == "decode":
            num_steps = self._job.flags.num_steps
        else:
            strays = np.random.default_rng(seed).random(self._sketch.shape) < 0.5
            state = state._replace(sampled=jnp.where(strays, self._other, self._sketch))
        every, times = -(-num_steps // 4), []
        for first in range(0, num_steps, every):
            last = min(first + every, num_steps)
            state = self._run(self._params, self._shared, guide, state, first, last)
            jax.block_until_ready(state)
            times.append((last, time.perf_counter()))
        # The first time is after the start and the first steps.
        (first, began), (last, ended) = times[0], times[-1]
        values = state.sampled[:, 1:] if self._job.flags.task == "decode" else state.memory[0]
        return {
            "compile_seconds": self._compile_seconds - compiled,
            "step_seconds": (ended - began) / (last - first),
            "peak_bytes": memory()[1] - held,
            "values": np.asarray(values),
        }

    def check(self) -> dict[str, Any]:
        """Operations by formula against XLA's count; the memory that XLA sets aside.

        Of a loop, also of ours' over layers, XLA counts one round: ours is counted with one layer.
        """
        job, config = self._job, self._job.config
        whole = counted = self._compiled(job)
        if job.role == "ours":
            settings = dataclasses.replace(job.guided.settings, layer_weights=np.ones(1))
            sizes = dataclasses.replace(config.transformer, num_layers=1)
            config = dataclasses.replace(config, transformer=sizes)
            job = job._replace(guided=job.guided._replace(settings=settings), config=config)
            counted = self._compiled(job)
        return {
            "layers": config.transformer.num_layers,
            "formula": job.operations(),
            "xla": (counted.cost_analysis() or {}).get("flops"),
            "temporary_bytes": whole.memory_analysis().temp_size_in_bytes,
        }

    def _compiled(self, job: Job) -> jax.stages.Compiled:
        """A step or a score by the first layers, as many as the job's model has."""
        start, run, shared = _programs(job)
        keys = sample_keys(0, jnp.arange(job.flags.batch_size))
        given = jax.eval_shape(start, self._params, self._sketch, keys)
        return run.lower(self._params, shared, *given, 0, 1).compile()


def reset_peak() -> int:
    """Bytes held now; forgets the largest number so far where the system can."""
    gc.collect()
    if _CLEAR.exists():
        # Freed memory that the C library keeps would hide what a run takes.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
    return memory()[0]


def memory() -> tuple[int, int]:
    """Bytes held now, where the system says, and the most since `reset_peak` or the beginning."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"], stats["peak_bytes_in_use"]
    if _CLEAR.exists():
        status = Path("/proc/self/status").read_text()
        held, peak = (re.search(rf"{name}:\s+(\d+) kB", status)[1] for name in ("VmRSS", "VmHWM"))
        return 1024 * int(held), 1024 * int(peak)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0, largest if sys.platform == "darwin" else 1024 * largest
