"""The figures against independent formulas, closed forms and hand-made inputs."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
from jaxtyping import TypeCheckError

from experiments.demo_world import world
from experiments.metrics import measures


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_shapes_in_the_annotations_of_experiments_are_checked():
    """As in the other packages, while tests run: these would broadcast."""
    with pytest.raises(TypeCheckError, match="silhouette_iou"):
        measures.silhouette_iou(np.zeros((1, 4, 4), bool), np.zeros((3, 4, 4), bool))


def test_mean_and_error_of_known_samples():
    mean, error = measures.mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    # Deviations -2, -1, 0, 3: variance 14 / 3.
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3 / 4))
    shares = np.array([True] * 30 + [False] * 10)
    mean, error = measures.mean_and_error(shares)
    assert mean == 0.75 and error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    mean, error = measures.mean_and_error(np.array([0.5]))
    assert mean == 0.5 and math.isnan(error)


def test_jackknife_error_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=20)
    without = np.array([np.delete(x, i).mean() for i in range(20)])
    assert measures.jackknife_error(without) == pytest.approx(measures.mean_and_error(x)[1])


def test_silhouette_iou_of_hand_made_masks():
    empty = np.zeros((10, 10), bool)
    pairs = [
        (square(0, 0, 4), square(0, 0, 4), 1.0),
        (square(0, 0, 4), square(5, 5, 4), 0.0),
        (square(0, 0, 4), square(2, 2, 4), 4 / 28),
        (square(0, 0, 4), square(0, 0, 8), 16 / 64),
        (square(0, 0, 4), empty, 0.0),
        (empty, empty, 1.0),
    ]
    a, b, expected = (np.stack(column) for column in zip(*pairs, strict=True))
    np.testing.assert_allclose(measures.silhouette_iou(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(measures.silhouette_iou(b, a), expected, rtol=1e-12)


def test_part_miou_goes_over_the_parts_that_either_shows():
    a = square(0, 0, 4) * 3 + square(6, 6, 4) * 7
    shifted = square(0, 2, 4) * 3 + square(6, 6, 4) * 7
    other = square(0, 0, 4) * 3 + square(6, 6, 4) * 5
    nothing = np.zeros_like(a)
    found = measures.part_miou(
        np.stack([a, a, a, a, nothing]), np.stack([a, shifted, other, nothing, nothing])
    )
    # Moved by 2 of 4: 8 of 24 pixels. Another name for one of two parts: of three, one agrees.
    np.testing.assert_allclose(found, [1, (1 / 3 + 1) / 2, 1 / 3, 0, 1])


def test_edges_of_a_disc_are_its_outline_and_of_noise_below_the_threshold_none():
    y, x = np.mgrid[:48, :48] - 23.5
    radius = np.hypot(x, y)
    disc = np.where(radius[..., None] < 14, [0.9, 0.2, 0.2], [0.3, 0.5, 0.2]).astype(np.float32)
    noise = 0.5 + 0.01 * np.random.default_rng(0).normal(size=(48, 48, 3)).astype(np.float32)
    edges = measures.find_edges(np.stack([disc, noise]))
    assert not edges[1].any()
    assert np.abs(radius[edges[0]] - 14).max() < 1.5
    # A thin line around the disc, without large gaps: 4√2 r pixels where they touch at corners,
    # 8 r where they touch at sides.
    assert 4 * math.sqrt(2) * 14 <= edges[0].sum() <= 8 * 14
    angles = np.sort(np.arctan2(y, x)[edges[0]])
    assert np.diff(angles).max() < 0.2


def test_edges_need_a_clear_step_somewhere_on_their_line():
    ramp = np.zeros((3, 48, 48, 3), np.float32)
    ramp[0, :, 24:] = 0.07  # too faint all along
    ramp[1, :, 24:] = 0.12  # faint all along
    ramp[2, :, 24:] = 0.12
    ramp[2, :10, 24:] = 0.3  # clear at one end
    edges = measures.find_edges(ramp)
    assert not edges[0].any() and not edges[1].any()
    np.testing.assert_array_equal(edges[2].sum(axis=1)[15:], 1)  # one pixel in each row


def test_edges_of_a_larger_picture_are_the_same_edges():
    images = [world.draw_scene(3, 5, size=size).image / np.float32(255) for size in (48, 96)]
    small, large = (measures.find_edges(image[None])[0] for image in images)
    shrunk = large.reshape(48, 2, 48, 2).any(axis=(1, 3))
    alignment = measures.edge_alignment(small[None], shrunk[None])
    assert alignment.f_score[0] > 0.9


def brute_alignment(ink, edges):
    """Distances from each point to each other point, in sides."""
    a, b = np.argwhere(ink) / len(ink), np.argwhere(edges) / len(ink)
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    to_edges, to_ink = table.min(axis=1), table.min(axis=0)
    recall, precision = np.mean(to_edges <= 1 / 24), np.mean(to_ink <= 1 / 24)
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return to_edges.mean(), to_ink.mean(), f_score


def test_edge_alignment_agrees_with_all_pairs_of_points():
    rng = np.random.default_rng(0)
    ink, edges = rng.random((2, 6, 48, 48)) < 0.01
    found = measures.edge_alignment(ink, edges)
    expected = [brute_alignment(*pair) for pair in zip(ink, edges, strict=True)]
    np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=1e-9)


def test_edge_alignment_of_known_lines_and_of_none():
    line, empty = np.zeros((2, 48, 48), bool)
    line[10] = True
    near, far = np.roll(line, 2, axis=0), np.roll(line, 3, axis=0)
    found = measures.edge_alignment(
        np.stack([line, line, line, line, empty, empty]),
        np.stack([line, near, far, empty, line, empty]),
    )
    np.testing.assert_allclose(found.ink_to_edge, [0, 2 / 48, 3 / 48, 1, 1, 0])
    np.testing.assert_allclose(found.edge_to_ink, [0, 2 / 48, 3 / 48, 1, 1, 0])
    np.testing.assert_allclose(found.f_score, [1, 1, 0, 0, 0, 1])


def test_white_background_looks_at_the_border_alone():
    white = np.ones((10, 10, 3), np.float32)
    framed_dark = white.copy()
    framed_dark[1:-1, 1:-1] = 0.0
    framed_white = np.zeros_like(white)
    framed_white[1:-1, 1:-1] = 1.0
    yellowish = white * np.float32([1, 1, 0.93])
    images = np.stack([white, framed_dark, framed_white, yellowish])
    np.testing.assert_array_equal(measures.white_background(images), [True, True, False, False])


def test_white_background_needs_three_fifths_of_the_border():
    border = [(y, x) for y in range(11) for x in range(11) if y in (0, 10) or x in (0, 10)]
    assert len(border) == 40  # each pixel once, corners too
    images = np.ones((2, 11, 11, 3), np.float32)
    for image, dark in zip(images, (16, 17), strict=True):
        for y, x in border[:dark]:
            image[y, x, 1] = 0.9
    np.testing.assert_array_equal(measures.white_background(images), [True, False])


def test_white_background_agrees_with_the_world():
    scenes = [world.draw_scene(3, index) for index in range(100)]
    images = np.stack([scene.image for scene in scenes]).astype(np.float32) / 255
    expected = [scene.background == "white" for scene in scenes]
    np.testing.assert_array_equal(measures.white_background(images), expected)


def test_the_commonest_background_is_the_colour_near_most_others():
    rng = np.random.default_rng(0)
    colours = np.array([[0.2, 0.5, 0.9]] * 11 + [[1, 1, 1]] * 5 + [[0.1, 0.9, 0.1]] * 4)
    images = np.broadcast_to(colours[:, None, None], (20, 12, 12, 3)).copy()
    images += rng.uniform(-0.04, 0.04, images.shape)
    # What lies inside, and less than half of the border, does not count.
    images[:, 3:9, 3:9] = 0
    images[:, 0] = 0.5
    share, error = measures.commonest_background(images)
    assert share == 11 / 20
    # Of 20 groups of one picture: that of a mean.
    assert error == pytest.approx(math.sqrt(0.55 * 0.45 / 19))


def test_one_colour_is_that_of_the_largest_part_in_light_and_shade():
    light = np.linspace(0.3, 1, 24)[:, None, None]
    plain = np.broadcast_to(light * np.array([0.9, 0.3, 0.2]), (24, 24, 3))
    two = plain.copy()
    two[:, 12:] = light * np.array([0.2, 0.3, 0.9])
    dots = plain.copy()
    dots[6:10, 6:12] = (0.2, 0.3, 0.9)
    parts = np.zeros((24, 24), int)
    parts[2:22, 2:22] = 3
    small = parts.copy()
    small[2:22, 15:22] = 5
    images = np.stack([plain, two, dots, two, plain]).astype(np.float32)
    masks = np.stack([parts, parts, parts, small, np.zeros_like(parts)])
    # The fourth's larger part lies almost wholly on one side; the last has no part.
    found = measures.one_colour(images, masks)
    np.testing.assert_array_equal(found, [True, False, True, True, False])


def test_sharpness_is_the_mean_of_the_steepest_fiftieth():
    # Brightness rises by a step of 0.6 between columns 4 and 5: slope 0.3 at both, 20 pixels.
    image = np.zeros((10, 10, 3), np.float32)
    image[:, 5:] = 0.6
    flat = np.full_like(image, 0.5)
    np.testing.assert_allclose(measures.sharpness(np.stack([image, flat])), [0.3, 0], atol=1e-6)
    # One pixel of 100: the steepest 2 are its neighbours along an axis, or diagonally placed.
    dot = np.zeros_like(image)
    dot[5, 5] = 1
    np.testing.assert_allclose(measures.sharpness(dot[None]), [0.5], atol=1e-6)


def test_shared_token_share_counts_the_cells_that_the_mask_touches():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 1, 1] = True  # one pixel: cell 0 of 4 x 4
    masks[1, 1:3, 1:3] = True  # cells 0, 1, 4, 5
    sketch_ids = np.tile(np.arange(16), (3, 1))
    ids = np.full((3, 16), 99)
    ids[0, [0, 7]] = [0, 7]  # cell 7 is outside the mask
    ids[1, [0, 1, 4, 15]] = [0, 1, 4, 15]
    ids[2] = sketch_ids[2]
    found = measures.shared_token_share(ids, sketch_ids, masks)
    np.testing.assert_allclose(found, [1.0, 0.75, 0.0])


def test_other_drawings_are_the_next_of_the_same_or_of_another_class():
    labels = np.array([4, 4, 7, 4, 7])
    found = measures.other_drawings(labels, same_class=True)
    np.testing.assert_array_equal(found, [1, 3, 4, 0, 2])
    found = measures.other_drawings(labels, same_class=False)
    np.testing.assert_array_equal(found, [2, 2, 3, 4, 0])
    assert measures.other_drawings(np.array([1, 2, 1]), same_class=True) is None
    assert measures.other_drawings(np.array([1, 1, 1]), same_class=False) is None


def test_frechet_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + 1
    b = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert measures.frechet_distance(a, b)[0] == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_normal_distributions():
    # Whitened and then scaled samples: the moments are exact. d² = |μ|² + Σ (σ₁ − σ₂)².
    x = np.random.default_rng(0).normal(size=(50, 3))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    shifted = x * [1.0, 2.0, 3.0] + [3.0, 0.0, 4.0]
    distance, _ = measures.frechet_distance(shifted, x * [2.0, 2.0, 0.5])
    assert distance == pytest.approx(25 + 1 + 0 + 6.25, rel=1e-9)
    assert measures.frechet_distance(x, x)[0] == pytest.approx(0, abs=1e-9)


def test_frechet_distance_stands_where_a_covariance_is_singular():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(6, 12)) * 1e3  # fewer samples than features
    reference = rng.normal(size=(40, 12)) * 1e3
    distance, error = measures.frechet_distance(flat, reference)
    root = scipy.linalg.sqrtm(np.cov(reference, rowvar=False))
    inner = np.linalg.eigvalsh(root @ np.cov(flat, rowvar=False) @ root)
    overlap = np.sqrt(np.maximum(inner, 0)).sum()
    expected = np.sum((flat.mean(0) - reference.mean(0)) ** 2) - 2 * overlap
    expected += flat.var(0, ddof=1).sum() + reference.var(0, ddof=1).sum()
    assert distance == pytest.approx(expected, rel=1e-6) and np.isfinite(error)


def test_frechet_distance_and_its_error_hold_over_new_samples():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(5000, 4))
    drawn = [measures.frechet_distance(rng.normal(0.5, 1, (200, 4)), reference) for _ in range(60)]
    values, errors = np.array(drawn).T
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)
    assert np.mean(values) == pytest.approx(1.0, abs=0.15)  # 4 · 0.5², and a bias of order 1/n


def test_within_manifold_agrees_with_all_pairs_of_points(monkeypatch):
    monkeypatch.setattr(measures, "_DISTANCES_AT_ONCE", 100)  # several blocks of rows
    rng = np.random.default_rng(0)
    points, support = rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 2

    def inside(point):
        for i in range(30):
            others = [math.dist(support[i], support[j]) for j in range(30) if j != i]
            if math.dist(point, support[i]) <= sorted(others)[2]:
                return True
        return False

    expected = [inside(point) for point in points]
    assert 5 < sum(expected) < 35
    np.testing.assert_array_equal(measures.within_manifold(points, support), expected)


def test_precision_and_recall_tell_what_is_missing():
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(0, 1, (200, 3)), rng.normal(50, 1, (200, 3))])
    one = rng.normal(0, 1, (200, 3))
    # Samples of one of two kinds: all are real, half of what is real is missing.
    assert measures.within_manifold(one, both).mean() > 0.85
    assert 0.4 < measures.within_manifold(both, one).mean() < 0.5


def test_inception_score_of_known_distributions():
    sure = np.eye(5)[np.arange(100) % 5]
    assert measures.inception_score(sure)[0] == pytest.approx(5)
    assert measures.inception_score(np.full((100, 5), 0.2)) == pytest.approx((1, 0))
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=90)
    splits = [p[:40], p[40:80], p[80:]]
    scores = []
    for split in splits:
        marginal = split.mean(axis=0)
        entropies = -(split * np.log(split)).sum(axis=1)
        scores.append(np.exp(-(marginal * np.log(marginal)).sum() - entropies.mean()))
    score, error = measures.inception_score(p, split_size=40)
    assert score == pytest.approx(np.mean(scores)) and 0 < error < score


def test_psnr_of_a_known_error():
    a = np.zeros((2, 4, 4, 3), np.float32)
    b = a + np.float32([0.1, 0.01]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(measures.psnr(a, b), [20, 40], rtol=1e-5)
    assert measures.psnr(a, a)[0] == np.inf


def test_ssim_is_the_published_formula_window_by_window():
    rng = np.random.default_rng(0)
    x = rng.random((1, 14, 13, 3)).astype(np.float32)
    y = np.clip(x + 0.2 * rng.normal(size=x.shape), 0, 1).astype(np.float32)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for top, left, channel in itertools.product(range(4), range(3), range(3)):
        p, q = (v[0, top : top + 11, left : left + 11, channel].astype(float) for v in (x, y))
        mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
        var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
        covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
        luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
        values.append(luminance * (2 * covariance + 9e-4) / (var_p + var_q + 9e-4))
    assert measures.ssim(x, y)[0] == pytest.approx(np.mean(values), rel=1e-9)
    np.testing.assert_allclose(measures.ssim(x, x), 1)
