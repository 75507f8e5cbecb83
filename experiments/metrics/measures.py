"""The figures that pictures are judged by: pure functions of arrays, without a network or flags.

Agreement with a drawing (`silhouette_iou`, `part_miou`, `edge_alignment`), realism of a set of
pictures (`frechet_distance`, `within_manifold`, `inception_score`), fidelity of a copy (`psnr`,
`ssim`, `sharpness`), and what gives a copied drawing away (`white_background`,
`shared_token_share`). Figures of single pictures come one per picture, for `mean_and_error`;
figures of a set bring their own error.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.special
from jaxtyping import Bool, Float, Int, Shaped

_WHITE_LEVEL = 0.94
_WHITE_BORDER_SHARE = 0.6
_FAINT_EDGE, _CLEAR_EDGE = 0.08, 0.16  # steps of a colour channel
_EDGE_TOLERANCE = 1 / 24  # of the side
_SAME_COLOUR = 0.1
_SAME_SHARE, _ONE_COLOUR_SHARE = 0.05, 0.8
_JACKKNIFE_GROUPS = 20
_DISTANCES_AT_ONCE = 2**24


def mean_and_error(values: Shaped[np.ndarray, "n"]) -> tuple[float, float]:
    """Mean and its standard error, s / √n; the error of a single value is NaN."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def jackknife_error(estimates: Float[np.ndarray, "g"]) -> float:
    """Standard error of a figure of a whole set, by the delete-a-group jackknife.

    The estimates are the figure taken without each of g equal groups of the samples in turn; the
    error is √((g − 1)/g · Σ (θ_j − θ̄)²).
    """
    return float(np.sqrt((len(estimates) - 1) * np.var(estimates)))


def jackknife_groups(num_samples: int) -> Int[np.ndarray, "n"]:
    """The number of each sample's group, of at most 20."""
    return np.arange(num_samples) % min(_JACKKNIFE_GROUPS, num_samples)


def silhouette_iou(
    mask_a: Bool[np.ndarray, "b h w"], mask_b: Bool[np.ndarray, "b h w"]
) -> Float[np.ndarray, "b"]:
    """Intersection over union of two masks, in [0, 1]; 1 where both are empty."""
    intersection = np.sum(mask_a & mask_b, axis=(1, 2))
    union = np.sum(mask_a | mask_b, axis=(1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def part_miou(
    parts_a: Int[np.ndarray, "b h w"], parts_b: Int[np.ndarray, "b h w"]
) -> Float[np.ndarray, "b"]:
    """Mean over parts of the intersection over union, in [0, 1]; part 0, the background, is none.

    The mean goes over the parts that either of the two shows: a part that only one of them has
    counts 0. 1 where both are background alone.
    """
    total = np.zeros(len(parts_a))
    shown = np.zeros(len(parts_a))
    for part in np.setdiff1d(np.union1d(parts_a, parts_b), 0):
        here_a, here_b = parts_a == part, parts_b == part
        either = np.any(here_a | here_b, axis=(1, 2))
        total += np.where(either, silhouette_iou(here_a, here_b), 0)
        shown += either
    return np.where(shown == 0, 1.0, total / np.maximum(shown, 1))


def find_edges(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b h w"]:
    """The edges of pictures in [0, 1], lines of one pixel (Canny 1986).

    Smoothing is in proportion to the side, so size does not change what counts as an edge. Kept is
    what is strongest across its direction and at least a faint step, and hangs together with a
    clear one: 0.08 and 0.16 of the range of the channel that changes most.
    """
    sigma = images.shape[1] / 48
    dy, dx = (
        scipy.ndimage.gaussian_filter(
            images.astype(np.float32), (0, sigma, sigma, 0), order=order, mode="nearest"
        )
        for order in ((0, 1, 0, 0), (0, 0, 1, 0))
    )
    # A step of height c has the slope c / (σ √2π) where it is steepest.
    strengths = np.hypot(dx, dy) * sigma * (2 * np.pi) ** 0.5
    strongest = np.argmax(strengths, axis=-1)[..., None]
    strength, dx, dy = (
        np.take_along_axis(x, strongest, axis=-1)[..., 0] for x in (strengths, dx, dy)
    )

    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    height, width = strength.shape[1:]
    octant = np.rint(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(strength.shape, bool)
    for direction, (down, right) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead, behind = (
            padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
            for y, x in ((down, right), (-down, -right))
        )
        # ≥ on one side alone: of two equal neighbours one is kept.
        ridge |= (octant == direction) & (strength > ahead) & (strength >= behind)

    faint = ridge & (strength >= _FAINT_EDGE)
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # within a picture, corners too
    lines, count = scipy.ndimage.label(faint, touching)
    clear = np.unique(lines[faint & (strength >= _CLEAR_EDGE)])
    return np.isin(np.arange(count + 1), clear)[lines]


class EdgeAlignment(NamedTuple):
    """What `edge_alignment` gives.

    Attributes:
      ink_to_edge: mean distance from the drawing's ink to the picture's nearest edge, in sides.
      edge_to_ink: mean distance from the picture's edges to the nearest ink, in sides.
      f_score: harmonic mean of the shares of ink and of edges that have the other within 1/24 of
        the side.
    """

    ink_to_edge: Float[np.ndarray, "b"]
    edge_to_ink: Float[np.ndarray, "b"]
    f_score: Float[np.ndarray, "b"]


def edge_alignment(
    ink: Bool[np.ndarray, "b h w"], edges: Bool[np.ndarray, "b h w"]
) -> EdgeAlignment:
    """How near the lines of a drawing and the edges of a picture are to each other.

    The two one-sided distances are those of chamfer matching (Barrow et al. 1977), the F-score
    that of boundary detection (Martin et al. 2004) without one-to-one matching. Where one of the
    two is empty and the other is not, distances are 1 and the F-score is 0.
    """
    side = ink.shape[1]

    def distances(start, goal):
        """To the nearest goal, from each pixel of the start."""
        if not goal.any():
            return np.ones(start.sum())
        return scipy.ndimage.distance_transform_edt(~goal)[start] / side

    def compare(ink, edges):
        if not ink.any() and not edges.any():
            return 0.0, 0.0, 1.0
        ways = [distances(ink, edges), distances(edges, ink)]
        recall, precision = (np.mean(way <= _EDGE_TOLERANCE) if len(way) else 0.0 for way in ways)
        f_score = 2 * precision * recall / max(precision + recall, 1e-9)
        return *(np.mean(way) if len(way) else 1.0 for way in ways), f_score

    figures = np.array([compare(*pair) for pair in zip(ink, edges, strict=True)])
    return EdgeAlignment(*figures.T)


def white_background(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b"]:
    """Whether at least 60 % of a picture's border pixels have all channels above 0.94."""
    white = np.all(images > _WHITE_LEVEL, axis=-1)
    sides = (white[:, 0], white[:, -1], white[:, 1:-1, 0], white[:, 1:-1, -1])
    return np.mean(np.concatenate(sides, axis=1), axis=1) >= _WHITE_BORDER_SHARE


def border_colours(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b 3"]:
    """The median of each channel along a picture's border: its background's colour."""
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return np.median(np.concatenate(sides, axis=1), axis=1)


def commonest_background(images: Float[np.ndarray, "b h w 3"]) -> tuple[float, float]:
    """The share of pictures of the commonest background, and its standard error (jackknife).

    The share of those whose border's colour is within 0.1 of one picture's in each channel, for
    the picture of most such.
    """
    colours = border_colours(images)
    near = np.all(np.abs(colours[:, None] - colours) <= _SAME_COLOUR, axis=-1)
    groups = jackknife_groups(len(images))

    def share(kept: Bool[np.ndarray, "n"]) -> float:
        return float(np.mean(near[np.ix_(kept, kept)], axis=1).max())

    without = [share(groups != group) for group in range(groups.max() + 1)]
    return share(np.ones(len(images), bool)), jackknife_error(np.array(without))


def one_colour(
    images: Float[np.ndarray, "b h w 3"], parts: Int[np.ndarray, "b h w"]
) -> Bool[np.ndarray, "b"]:
    """Whether the largest part of the object has one colour, shadows and lights left out.

    So it is if 80 % of its pixels, without those at its rim, have red and green shares of their
    brightness within 0.05 of the median; false where there is no part.
    """

    def one(image: Float[np.ndarray, "h w 3"], parts: Int[np.ndarray, "h w"]) -> bool:
        counts = np.bincount(parts.ravel())
        counts[0] = 0
        if not counts.any():
            return False
        part = parts == counts.argmax()
        inner = scipy.ndimage.binary_erosion(part, iterations=max(1, len(parts) // 48))
        pixels = image[inner if inner.any() else part]
        shares = (pixels[:, :2] + 1e-3) / (pixels.sum(axis=1, keepdims=True) + 3e-3)
        near = np.abs(shares - np.median(shares, axis=0)) <= _SAME_SHARE
        return bool(np.mean(np.all(near, axis=1)) >= _ONE_COLOUR_SHARE)

    return np.array([one(*each) for each in zip(images, parts, strict=True)])


def sharpness(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b"]:
    """The mean slope of brightness over the steepest 2 % of a picture's pixels.

    The mean over all pixels would count noise as sharpness.
    """
    slopes = np.hypot(*np.gradient(images.mean(axis=-1), axis=(1, 2))).reshape(len(images), -1)
    count = max(1, slopes.shape[1] // 50)
    return np.sort(slopes, axis=1)[:, -count:].mean(axis=1)


def shared_token_share(
    ids: Int[np.ndarray, "b N"],
    sketch_ids: Int[np.ndarray, "b N"],
    masks: Bool[np.ndarray, "b H W"],
) -> Float[np.ndarray, "b"]:
    """Share of a picture's ids that are the sketch's own, among the cells that the mask touches.

    High where a sample copies the sketch instead of painting it; 0 for an empty mask.
    """
    side = round(ids.shape[1] ** 0.5)
    batch, size, _ = masks.shape
    cells = masks.reshape(batch, side, size // side, side, size // side)
    touched = np.any(cells, axis=(2, 4)).reshape(batch, -1)
    same = np.sum((ids == sketch_ids) & touched, axis=1)
    return same / np.maximum(np.sum(touched, axis=1), 1)


def other_drawings(
    labels: Int[np.ndarray, "n"], *, same_class: bool
) -> Int[np.ndarray, "n"] | None:
    """For each drawing the next one, round the end, of the same or of another class.

    None if a drawing has none.
    """
    count = len(labels)
    following = (np.arange(count)[:, None] + np.arange(1, count)) % count
    suited = (labels[following] == labels[:, None]) == same_class
    if not suited.any(axis=1).all():
        return None
    return following[np.arange(count), suited.argmax(axis=1)]


def frechet_distance(
    features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]
) -> tuple[float, float]:
    """Fréchet distance of two normal distributions fitted to features, and its standard error.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (Heusel et al. 2017, arXiv:1706.08500, equation 6). The
    fewer samples, the larger it comes out: compare figures of equal n alone. The error is that of
    the n ≥ 3 features (jackknife); the m ≥ 2 of the reference have no share in the error.
    """
    features, reference = features.astype(np.float64), reference.astype(np.float64)
    centre = reference.mean(axis=0)
    covariance = np.atleast_2d(np.cov(reference, rowvar=False))
    values, vectors = scipy.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(count, total, products):
        offset = total / count
        spread = (products - count * np.outer(offset, offset)) / (count - 1)
        # The eigenvalues of root · spread · root are those of Σ₁Σ₂, and it is symmetric.
        shared = scipy.linalg.eigvalsh(root @ spread @ root)
        overlap = np.sum(np.sqrt(np.maximum(shared, 0)))
        return offset @ offset + np.trace(spread) + np.trace(covariance) - 2 * overlap

    # Sums over groups of samples are taken once; what is left without a group is a difference.
    groups = jackknife_groups(len(features))
    parts = [features[groups == group] - centre for group in range(groups.max() + 1)]
    sums = [(len(part), part.sum(axis=0), part.T @ part) for part in parts]
    whole = [sum(column) for column in zip(*sums, strict=True)]
    without = [distance(*(x - y for x, y in zip(whole, part, strict=True))) for part in sums]
    return max(float(distance(*whole)), 0.0), jackknife_error(np.array(without))


def within_manifold(
    points: Float[np.ndarray, "n d"], support: Float[np.ndarray, "m d"], neighbours: int = 3
) -> Bool[np.ndarray, "n"]:
    """Whether each point lies in some support point's k-nearest-neighbour ball.

    The mean over samples with photos as support is the precision of the samples, over photos with
    samples as support their recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2).
    Both depend on the numbers of points; there must be more support points than neighbours.
    """
    points, support = points.astype(np.float64), support.astype(np.float64)
    norms = np.sum(support**2, axis=1)

    def distances(rows):
        """Squared, to all support points."""
        return np.maximum(np.sum(rows**2, axis=1)[:, None] + norms - 2 * rows @ support.T, 0)

    def by_rows(function, rows):
        step = max(1, _DISTANCES_AT_ONCE // len(support))
        return np.concatenate(
            [function(distances(rows[i : i + step])) for i in range(0, len(rows), step)]
        )

    # A support point's nearest is itself: its k-th neighbour stands at place k.
    reach = by_rows(lambda d: np.partition(d, neighbours, axis=1)[:, neighbours], support)
    return by_rows(lambda d: np.any(d <= reach, axis=1), points)


def inception_score(
    probabilities: Float[np.ndarray, "n c"], split_size: int = 5000
) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y|x) from p(y), and its standard error (jackknife).

    Salimans et al. 2016 (arXiv:1606.03498, section 4): the mean over splits of `split_size`
    samples in the order they stand, each with its own p(y).
    """

    def score(kept):
        splits = [kept[i : i + split_size] for i in range(0, len(kept), split_size)]
        divergences = [np.sum(scipy.special.rel_entr(x, x.mean(axis=0)), axis=1) for x in splits]
        return np.mean([np.exp(np.mean(x)) for x in divergences])

    groups = jackknife_groups(len(probabilities))
    without = [score(probabilities[groups != group]) for group in range(groups.max() + 1)]
    return float(score(probabilities)), jackknife_error(np.array(without))


def psnr(
    images: Float[np.ndarray, "b h w 3"], originals: Float[np.ndarray, "b h w 3"]
) -> Float[np.ndarray, "b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite where they agree."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.mean((images - originals) ** 2, axis=(1, 2, 3)))


def ssim(
    images: Float[np.ndarray, "b h w 3"], originals: Float[np.ndarray, "b h w 3"]
) -> Float[np.ndarray, "b"]:
    """Structural similarity of pictures in [0, 1], in [−1, 1]: mean over windows and channels.

    Wang et al. 2004, equation 13: windows of 11×11 pixels that lie wholly within the picture,
    Gaussian weights of σ 1.5, K₁ 0.01, K₂ 0.03.
    """
    x, y = images.astype(np.float64), originals.astype(np.float64)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def local_mean(values):
        for axis in (1, 2):
            values = scipy.ndimage.correlate1d(values, weights, axis=axis)
        return values[:, 5:-5, 5:-5]

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return similarity.mean(axis=(1, 2, 3))
