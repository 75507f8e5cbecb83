"""InceptionV3 as the Fréchet Inception Distance uses it: network, preprocessing, weights file.

The network is the one of TensorFlow's `inception-2015-12-05`, for 1008 classes (Szegedy et al.
2016, arXiv:1512.00567). Against the usual InceptionV3 its average pools leave the padding out and
the last block takes a max pool. Names are those of pytorch-fid's
`pt_inception-2015-12-05-6726825d`.

The weights do not ship with the project. That file is public (pytorch-fid's GitHub releases, tag
`fid_weights`); where PyTorch is installed, three lines make the `.npz` that `load_inception` reads:

    import numpy, torch
    state = torch.load("pt_inception-2015-12-05-6726825d.pth", map_location="cpu")
    numpy.savez("inception.npz", **{name: value.numpy() for name, value in state.items()})

or, as `.safetensors`, `safetensors.torch.save_file(state, "inception.safetensors")`.

What figures compare with: `preprocess` resizes and scales as pytorch-fid does, whose figures these
are, up to rounding. The evaluator of ADM (TensorFlow) has the same weights, but resizes without
half-pixel centres and scales by (x − 128) / 128: for figures equal to published ones, export the
samples (`score --export`) and run it. clean-fid resizes with an antialiased bicubic filter.
"""

import functools
import http.client
import secrets
import shutil
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, UInt8

from maskgit_jax.checkpoints.cache import cache_folder
from maskgit_jax.errors import InputError
from maskgit_jax.keys import seed_key

IMAGE_SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008

_TIMEOUT_S = 30.0


class Inception(NamedTuple):
    """What `InceptionV3` gives.

    Attributes:
      features: the last average pool ("pool3").
      logits: of the classes, without the bias: so published Inception Scores are taken.
    """

    features: Float[Array, "b 2048"]
    logits: Float[Array, "b 1008"]


class _Conv(nn.Module):
    """Convolution, batch normalization, ReLU; the side stays, or shrinks by a valid convolution."""

    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        # "highest": accelerators round the operands of a product by default. Zeros: weights are
        # always read from a file, and random ones take long to trace.
        x = nn.Conv(
            self.width,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision="highest",
            kernel_init=nn.initializers.zeros,
            name="conv",
        )(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mean over each pixel's 3×3 neighbours, those outside the picture left out."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Highest of each pixel's 3×3 neighbours."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def _halve(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _run(x, steps):
    """Applies steps one after the other.

    A step is a pool, a convolution (name, width, kernel, stride, padding), or branches: each is a
    tuple of steps, and their results are joined.
    """
    for step in steps:
        if callable(step):
            x = step(x)
        elif isinstance(step[0], str):
            x = _Conv(*step[1:], name=step[0])(x)
        else:
            x = jnp.concatenate([_run(x, branch) for branch in step], axis=-1)
    return x


class _Block(nn.Module):
    branches: tuple

    @nn.compact
    def __call__(self, x):
        return _run(x, [self.branches])


_ROW, _COLUMN = (1, 7), (7, 1)
_VALID = (3, 3), 2, "VALID"
_DOUBLE = ("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3))


def _block_a(pool_width):
    return (
        (("branch1x1", 64),),
        (("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
        (*_DOUBLE, ("branch3x3dbl_3", 96, (3, 3))),
        (average_pool, ("branch_pool", pool_width)),
    )


_BLOCK_B = (
    (("branch3x3", 384, *_VALID),),
    (*_DOUBLE, ("branch3x3dbl_3", 96, *_VALID)),
    (_halve,),
)


def _block_c(width):
    kernels = (1, 1), _COLUMN, _ROW, _COLUMN, _ROW
    widths = width, width, width, width, 192
    double = zip(widths, kernels, strict=True)
    return (
        (("branch1x1", 192),),
        (
            ("branch7x7_1", width),
            ("branch7x7_2", width, _ROW),
            ("branch7x7_3", 192, _COLUMN),
        ),
        tuple((f"branch7x7dbl_{place}", *each) for place, each in enumerate(double, 1)),
        (average_pool, ("branch_pool", 192)),
    )


_BLOCK_D = (
    (("branch3x3_1", 192), ("branch3x3_2", 320, *_VALID)),
    (
        ("branch7x7x3_1", 192),
        ("branch7x7x3_2", 192, _ROW),
        ("branch7x7x3_3", 192, _COLUMN),
        ("branch7x7x3_4", 192, *_VALID),
    ),
    (_halve,),
)


def _block_e(pool):
    def ends(name):
        return tuple(((f"{name}{end}", 384, k),) for end, k in (("a", (1, 3)), ("b", (3, 1))))

    return (
        (("branch1x1", 320),),
        (("branch3x3_1", 384), ends("branch3x3_2")),
        (("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)), ends("branch3x3dbl_3")),
        (pool, ("branch_pool", 192)),
    )


class InceptionV3(nn.Module):
    """The network; its variables are 'params' and 'batch_stats'."""

    @nn.compact
    def __call__(self, images: Float[Array, "b 299 299 3"]) -> Inception:
        """Features and logits of pictures in [-1, 1]; the last maps are 8×8×2048."""
        stem = (
            ("Conv2d_1a_3x3", 32, *_VALID),
            ("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
            ("Conv2d_2b_3x3", 64, (3, 3)),
            _halve,
            ("Conv2d_3b_1x1", 80),
            ("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
            _halve,
        )
        blocks = {
            "Mixed_5b": _block_a(32),
            "Mixed_5c": _block_a(64),
            "Mixed_5d": _block_a(64),
            "Mixed_6a": _BLOCK_B,
            "Mixed_6b": _block_c(128),
            "Mixed_6c": _block_c(160),
            "Mixed_6d": _block_c(160),
            "Mixed_6e": _block_c(192),
            "Mixed_7a": _BLOCK_D,
            "Mixed_7b": _block_e(average_pool),
            "Mixed_7c": _block_e(max_pool),
        }
        x = _run(images, stem)
        for name, branches in blocks.items():
            x = _Block(branches, name=name)(x)
        features = x.mean(axis=(1, 2))
        classify = nn.Dense(NUM_CLASSES, use_bias=False, precision="highest", name="fc")
        return Inception(features, classify(features))


def preprocess(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Pictures resized and scaled to [-1, 1] as pytorch-fid does: 2 · x / 255 − 1.

    Bilinear between the four nearest pixels, with half-pixel centres and without antialiasing,
    whatever the size (`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`).
    """
    shape = (len(images), IMAGE_SIZE, IMAGE_SIZE, 3)
    x = jax.image.resize(
        images.astype(jnp.float32) / 255, shape, "linear", antialias=False, precision="highest"
    )
    return 2 * x - 1


@jax.jit
def embed(variables: Any, images: UInt8[Array, "b h w 3"]) -> Inception:
    """Features and logits of pictures in [0, 255] of any size."""
    return InceptionV3().apply(variables, preprocess(images))


@functools.cache
def variable_shapes() -> Any:
    """Names and shapes of the network's variables; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, seed_key(0), images)


def load_inception(source: str) -> Any:
    """The network's variables from a weights file, `.npz` or `.safetensors`; see the module.

    `source` is a path, or an address (http, https) that is fetched once into the cache folder.
    What the network has no use for ('fc.bias', 'num_batches_tracked') is ignored.

    Raises:
      InputError: the file cannot be had or read, lacks an array, or has one of another shape.
    """
    path = _fetch(source) if source.startswith(("http://", "https://")) else Path(source)
    arrays = _read_arrays(path)
    advice = "expected the FID InceptionV3 of pytorch-fid, see experiments/metrics/inception.py"
    shapes = variable_shapes()
    names = [_file_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of {len(names)} arrays, first {missing[0]!r}; {advice}"
        )

    def read(path, expected):
        name = _file_name(path)
        array = arrays[name]
        # PyTorch has the output channels first.
        if path[-1].key == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array
        if array.shape != expected.shape:
            raise InputError(
                f"{source}: {name} has shape {list(arrays[name].shape)}, expected "
                f"{list(expected.shape)} after transposition; {advice}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{source}: {name} holds NaN or infinite values; fetch it again")
        return jnp.asarray(array, jnp.float32)

    return jax.tree_util.tree_map_with_path(read, shapes)


def _file_name(path: tuple[Any, ...]) -> str:
    """The name in the weights file of the variable at a path of the tree."""
    _, *modules, name = (key.key for key in path)
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*modules, names.get(name, name)])


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            return safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot open {str(path)!r}: {error.strerror or error}; check the path"
        ) from None
    # A damaged file makes zip, NumPy and JSON raise many types of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}); fetch or convert it again") from None
    raise InputError(
        f"{path}: expected a file named .npz or .safetensors; "
        "experiments/metrics/inception.py says how to make one"
    )


def _fetch(url: str) -> Path:
    """The file at an address, from the cache if it is there; it appears there whole."""
    target = cache_folder() / "inception" / url.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        part.replace(target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"{url} cannot be fetched ({reason}); fetch it by hand and give its path"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return target
