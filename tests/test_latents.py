"""Latent space against closed forms: where the origin lies, how long an arc is, and ties."""

import math

import pytest
import torch

from vaelib import latents


@pytest.mark.parametrize("path", [latents.linear, latents.spherical])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_points_on_a_path_are_evenly_spaced(path, n):
    # a right angle between latents of length 2: the line and the arc are known point by point
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for k, found in enumerate(path(a, b, n)):
        t = k / (n - 1)
        quarter = (2 * math.cos(t * math.pi / 2), 2 * math.sin(t * math.pi / 2))
        expected = (2 - 2 * t, 2 * t) if path is latents.linear else quarter
        torch.testing.assert_close(found, torch.tensor(expected))


def test_an_arc_between_latents_of_different_lengths():
    # w = 60 degrees: half-way, sin(w/2) / sin(w) = 1 / sqrt(3) of each end
    a, b = torch.tensor([1.0, 0.0, 0.0]), 3 * torch.tensor([0.5, math.sqrt(0.75), 0.0])
    middle = latents.spherical(a, b, 3)[1]
    torch.testing.assert_close(middle, (a + b) / math.sqrt(3))


def test_arcs_that_are_no_arcs_are_lines():
    a = torch.tensor([1.0, 2.0, -2.0])
    for b in (2 * a, -a, a + 1e-7):
        way = latents.spherical(a, b, 5)
        t = torch.arange(5).unsqueeze(1) / 4
        torch.testing.assert_close(way, a + t * (b - a))
    # an angle of a hundredth is still an arc, whose middle keeps the length
    b = torch.tensor([math.cos(0.01), math.sin(0.01)])
    middle = latents.spherical(torch.tensor([1.0, 0.0]), b, 3)[1]
    torch.testing.assert_close(middle, torch.tensor([math.cos(0.005), math.sin(0.005)]))


def test_a_traversal_leaves_the_latent_it_began_with():
    z = torch.tensor([1.0, 2.0, 3.0])
    way = latents.traversal(z, 1, torch.tensor([-5.0, 0.0]))
    assert way.tolist() == [[1, -5, 3], [1, 0, 3]]
    assert z.tolist() == [1, 2, 3]


def test_the_grid_goes_row_by_row_from_the_top_left():
    # quartiles of N(0, 1): two cells a side have their middles at -0.6745 and 0.6745
    z = latents.manifold(2)
    q = 0.6744897501960817
    torch.testing.assert_close(z, torch.tensor([[-q, q], [q, q], [-q, -q], [q, -q]]))
    torch.testing.assert_close(latents.manifold(3, "linear")[0], torch.tensor([-3.0, 3.0]))


def test_dimensions_are_ordered_by_mean_nats_and_by_spread():
    kl = torch.tensor([[9.0, 0.0, 1.0], [0.0, 5.0, 1.5]])  # means 4.5, 2.5, 1.25
    assert latents.order_by_kl(kl[:, [1, 2, 0]]).tolist() == [2, 0, 1]
    means = torch.tensor([[100.0, 1.0, 0.0], [100.0, 3.0, 10.0], [100.1, 5.0, 0.0]])
    assert latents.order_by_variance(means).tolist() == [2, 1, 0]


def test_a_mixture_is_the_sum_of_its_gaussians():
    # two of them with correlations, against the density written out with inverse and determinant
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    tril = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.4, 0.0], [-0.3, 0.6]]])
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(20)
    for weight, mean, root in zip(weights, means, tril, strict=True):
        covariance = root @ root.T
        far = ((z - mean) @ torch.linalg.inv(covariance) * (z - mean)).sum(1)
        norm = 2 * math.pi * torch.linalg.det(covariance).sqrt()
        total += weight * torch.exp(-far / 2) / norm
    torch.testing.assert_close(latents.mixture(weights, means, tril).log_prob(z), total.log())


def test_draws_follow_their_seed_and_leave_the_global_one():
    density = latents.mixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = latents.draw(density, 4)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(latents.draw(density, 4), first)
    assert not torch.equal(latents.draw(density, 4, seed=1), first)
    assert first.shape == (4, 2)


def test_a_fit_keeps_a_latent_that_never_moves_invertible():
    # a collapsed dimension of an encoder that has learned to say exactly 0
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0])
    fit = latents.fit_mixture(z, 1)
    covariance = fit.component_distribution.covariance_matrix[0]
    expected = torch.diag(torch.stack([z[:, 0].var(unbiased=False), torch.tensor(0.0)]))
    torch.testing.assert_close(covariance, expected, atol=2e-4, rtol=0)
    assert 0 < covariance[1, 1] < 1e-3


def two_clouds(shift, scale, share: float = 0.3, n: int = 20_000):
    """Latents around (5, -4, 0), those with the attribute shifted; independent dimensions."""
    generator = torch.Generator().manual_seed(1)
    has = torch.rand(n, generator=generator) < share
    noise = torch.randn(n, len(shift), generator=generator) * torch.tensor(scale)
    away = torch.tensor([5.0, -4.0, 0.0])[: len(shift)]
    return away + noise + has.unsqueeze(1) * torch.tensor(shift), has


def test_directions_do_not_depend_on_where_the_origin_is():
    shift, scale = [1.0, -0.5, 0.0], [1.0, 0.5, 2.0]
    difference, normal = latents.attribute_directions(*two_clouds(shift, scale))
    torch.testing.assert_close(difference, torch.tensor(shift), atol=0.1, rtol=0)
    # with independent dimensions the best classifier's normal is shift / scale^2
    best = torch.tensor(shift) / torch.tensor(scale).square()
    along = best * torch.dot(difference, best) / best.square().sum()
    torch.testing.assert_close(normal, along, atol=0.1, rtol=0)


def test_a_dead_dimension_gets_no_part_of_a_direction():
    # one in 50 has the attribute; the third dimension moves by 1e-5, by chance
    z, has = two_clouds([2.0, 0.0, 0.0], [1.0, 1.0, 1e-5], share=0.02)
    difference, normal = latents.attribute_directions(z, has)
    assert normal[0].item() == pytest.approx(2.0, abs=0.2)
    assert normal[2].abs() < 0.05
    assert difference[2].abs() < 1e-3


def test_auc_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).float()  # with many ties
    has = torch.rand(40, generator=generator) < 0.4
    gaps = scores[has].unsqueeze(1) - scores[~has]
    expected = ((gaps > 0).sum() + (gaps == 0).sum() / 2) / gaps.numel()
    assert latents.auc(scores, has) == pytest.approx(expected.item())
