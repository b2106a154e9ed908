"""How latents relate to known factors, and how near codes are to the prior. Tensors in, no model.

`codes` are means of q(z | x), (N, D); `factors` are what `Images.factors` holds, a number for each
image by name. Definitions and sizes are those of disentanglement_lib (Locatello et al. 2019).
Every score is between 0 and 1, and 1 is best, unless it says nats. On codes that mix five factors
unevenly, disent 0.8 gives the same mig and sap to six digits (10,000 images), the same dci within
0.002 (its trees are seeded otherwise) and the same factor_vae within its error of 0.01.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vaelib.files import UserError
from vaelib.objectives import mmd

__all__ = [
    "MetricError", "beta_vae", "dci", "factor_vae", "gaussian_tc", "mig", "mmd",
    "mutual_information",
    "sap", "sliced_wasserstein", "surgery",
]  # fmt: skip

Factors = dict[str, Tensor]


class MetricError(UserError):
    """A metric can't be computed of these codes and factors; the message says why."""


class Gaps(NamedTuple):
    """A score that is a gap between the best code of a factor and its second best."""

    score: float  # the mean over factors
    each: dict[str, float]
    matrix: Tensor  # (D, F), what each code says of each factor


class DCI(NamedTuple):
    """Disentanglement, completeness, informativeness; importances of codes for factors (D, F)."""

    disentanglement: float  # does a code speak of one factor alone?
    completeness: float  # is a factor spoken of by one code alone?
    informativeness: float  # accuracy on the second part of the images
    matrix: Tensor


def mig(codes: Tensor, factors: Factors, n: int = 10_000, n_bins: int = 20) -> Gaps:
    """Mutual information gap, in units of the factor's entropy; of the first `n` images.

    For each factor: (the largest I(z_d; v) - the second largest) / H(v).
    Source: Chen et al. 2018, equation 6.
    """
    matrix, table = mutual_information(codes, factors, n, n_bins), _table(codes, factors, n)
    best, second = _top_two(matrix)
    return _gaps((best - second) / torch.tensor([entropy(v) for v in table.T]), factors, matrix)


def mutual_information(
    codes: Tensor, factors: Factors, n: int = 10_000, n_bins: int = 20
) -> Tensor:
    """I(z_d; v_f) of codes cut into bins of equal width. Shapes: -> (D, F), in nats."""
    from sklearn.metrics import mutual_info_score

    table = _table(codes, factors, n)
    binned = [_binned(column, n_bins) for column in _array(codes[:n]).T]
    return torch.tensor([[mutual_info_score(v, b) for v in table.T] for b in binned])


def sap(codes: Tensor, factors: Factors, n_train: int = 10_000, n_test: int = 5_000) -> Gaps:
    """Separated attribute predictability: how well one code alone predicts a factor.

    Each factor is a class, told by a linear SVM of one code; the score is the gap between the two
    best accuracies on the second part of the images. Source: Kumar et al. 2018, section 3.
    """
    from sklearn.svm import LinearSVC

    table = _table(codes, factors, n_train + n_test)
    x, matrix = _array(codes), torch.zeros(codes.shape[1], len(factors))
    train, test = slice(n_train), slice(n_train, n_train + n_test)
    for d in range(codes.shape[1]):
        for f, v in enumerate(table.T):
            svm = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            svm.fit(x[train, d : d + 1], v[train])
            matrix[d, f] = svm.score(x[test, d : d + 1], v[test])
    best, second = _top_two(matrix)
    return _gaps(best - second, factors, matrix)


def dci(
    codes: Tensor, factors: Factors, n_train: int = 10_000, n_test: int = 5_000, seed: int = 0
) -> DCI:
    """Disentanglement, completeness and informativeness, by gradient-boosted trees (minutes).

    Source: Eastwood & Williams 2018, section 2; the trees and the weights of the means are
    disentanglement_lib's.
    """
    from scipy.stats import entropy
    from sklearn.ensemble import GradientBoostingClassifier

    table, x = _table(codes, factors, n_train + n_test), _array(codes)
    importances, accuracies = [], []
    for v in table.T:
        trees = GradientBoostingClassifier(random_state=seed).fit(x[:n_train], v[:n_train])
        importances.append(trees.feature_importances_)
        test = slice(n_train, n_train + n_test)
        accuracies.append(trees.score(x[test], v[test]))
    matrix = np.stack(importances, axis=1)  # (D, F)

    def mean(rows: np.ndarray) -> float:  # of 1 - entropy of each row, by what the row weighs
        of_row = 1 - entropy(rows.T + 1e-11, base=rows.shape[1])
        return float((of_row * rows.sum(1)).sum() / rows.sum())

    return DCI(mean(matrix), mean(matrix.T), float(np.mean(accuracies)), torch.from_numpy(matrix))


def factor_vae(
    codes: Tensor, factors: Factors, n_train: int = 10_000, n_test: int = 5_000,
    batch: int = 64, least_variance: float = 0.05, seed: int = 0,
) -> float:  # fmt: skip
    """The FactorVAE score: in images that share a factor, does the calmest code tell which?

    A vote is (the dimension whose variance among `batch` images falls most, the factor shared);
    each dimension stands for the factor that most of its votes name; accuracy on further votes.
    Dimensions that vary by less than `least_variance` have no vote (as in Locatello et al. 2019;
    their code compares the standard deviation). Source: Kim & Mnih 2018, figure 2.
    """
    table, generator = torch.from_numpy(_table(codes, factors)), _generator(seed)
    variance = codes.var(0)
    if not (active := variance >= least_variance).any():
        return 0.0
    votes = []
    for n in (n_train, n_test):
        shared = torch.randint(len(factors), (n,), generator=generator)
        of = _sharing(table, shared, batch, generator)  # (n, batch)
        calm = codes[:, active][of].var(1).div(variance[active]).argmin(1)  # (n,)
        pairs = calm * len(factors) + shared
        counts = pairs.bincount(minlength=int(active.sum()) * len(factors))
        votes.append(counts.reshape(-1, len(factors)))  # (active dimensions, F)
    learned = votes[0].argmax(1, keepdim=True)
    return (votes[1].gather(1, learned).sum() / n_test).item()


def beta_vae(
    codes: Tensor, factors: Factors, n_train: int = 10_000, n_test: int = 5_000,
    batch: int = 64, seed: int = 0,
) -> float:  # fmt: skip
    """The beta-VAE score: a linear classifier tells which factor pairs of images share.

    From the mean over `batch` pairs of |z - z'|; accuracy on further batches.
    Source: Higgins et al. 2017, section 3; a logistic regression as in disentanglement_lib.
    """
    from sklearn.linear_model import LogisticRegression

    table, generator = torch.from_numpy(_table(codes, factors)), _generator(seed)
    x, y = [], []
    for n in (n_train, n_test):
        shared = torch.randint(len(factors), (n,), generator=generator)
        of = _sharing(table, shared.repeat_interleave(batch), 2, generator)  # (n * batch, 2)
        apart = (codes[of[:, 0]] - codes[of[:, 1]]).abs()
        x.append(_array(apart.reshape(n, batch, -1).mean(1)))
        y.append(shared.numpy())
    model = LogisticRegression(max_iter=1000, random_state=seed).fit(x[0], y[0])
    return float(model.score(x[1], y[1]))


def scores(codes: Tensor, factors: Factors) -> dict[str, float]:
    """Every score above by its name, of 15,000 images or more. It takes minutes: trees are grown.

    Shapes: codes (N, D), factors of (N,).
    """
    trees = dci(codes, factors)
    return {
        "mig": mig(codes, factors).score, "sap": sap(codes, factors).score,
        "factor_vae": factor_vae(codes, factors), "beta_vae": beta_vae(codes, factors),
        "dci_disentanglement": trees.disentanglement, "dci_completeness": trees.completeness,
        "dci_informativeness": trees.informativeness,
    }  # fmt: skip


def gaussian_tc(codes: Tensor) -> float:
    """Total correlation of a Gaussian with the codes' covariance, in nats: 0 where none covary.

    KL(q(z) || prod_d q(z_d)) = (sum_d log C_dd - log det C) / 2; a constant dimension adds 0.
    """
    _check(codes, 2)
    codes = codes[:, codes.var(0) > 0]
    covariance = codes.double().T.cov().reshape(codes.shape[1], -1)
    return 0.5 * (covariance.diag().log().sum() - covariance.logdet()).item()


def surgery(q_z: Normal, z: Tensor, prior, chunk: int = 16) -> dict[str, float]:
    """Where the mean KL goes, in nats: `kl` = `mutual` + `marginal`, and of that `tc`.

    mutual is I(x; z), how much z says of which image; marginal is KL(q(z) || p(z)); tc the part of
    it that dependences between dimensions are. q(z) is the mixture over all N images, of each of
    which z is one draw; with few images mutual can't be above log N.
    Shapes: q_z (N, D), z (N, D). Source: Hoffman & Johnson 2016, equation 5; Chen et al. 2018.
    """
    _check(z, 2)
    log_n = math.log(len(z))
    joint, each = [], []
    by_dim = Normal(q_z.loc.T.contiguous(), q_z.scale.T.contiguous(), validate_args=False)  # (D, N)
    for some in z.split(chunk):
        log_q = by_dim.log_prob(some.unsqueeze(-1))  # (S, D, N)
        joint.append(log_q.sum(1).logsumexp(-1) - log_n)
        each.append((log_q.logsumexp(-1) - log_n).sum(-1))
    log_qz, log_qz_each = torch.cat(joint), torch.cat(each)  # (N,)
    log_qz_x, log_pz = q_z.log_prob(z).sum(-1), prior.log_prob(z)
    parts = {"kl": log_qz_x - log_pz, "mutual": log_qz_x - log_qz, "marginal": log_qz - log_pz}
    parts["tc"] = log_qz - log_qz_each
    return {name: value.mean().item() for name, value in parts.items()}


def sliced_wasserstein(a: Tensor, b: Tensor, n_slices: int = 500, seed: int = 0) -> float:
    """The Wasserstein-2 distance along a random line, root of the mean square over lines.

    Shapes: a and b (N, D), as many of each. Between N(m, I) and N(0, I): |m| / sqrt(D).
    Source: Bonneel et al. 2015, definition 3.
    """
    if a.shape != b.shape:
        raise MetricError(f"{tuple(a.shape)} and {tuple(b.shape)}: give as many of each")
    lines = torch.randn(a.shape[1], n_slices, generator=_generator(seed), dtype=torch.float64)
    lines = lines / lines.norm(dim=0)  # (D, S), of length 1
    along = [(x.double() @ lines).sort(0).values for x in (a, b)]
    return (along[0] - along[1]).square().mean().sqrt().item()


def _sharing(table: Tensor, factor: Tensor, size: int, generator) -> Tensor:
    """`size` images at random among those that share one value of a factor, for each set.

    Shapes: table (N, F), factor (S,) which it is -> (S, size) indices.
    """
    found = torch.empty(len(factor), size, dtype=torch.int64)
    for f in factor.unique().tolist():
        _, value, count = table[:, f].unique(return_inverse=True, return_counts=True)
        by_value, first = value.argsort(), count.cumsum(0) - count
        sets = (factor == f).nonzero().squeeze(1)
        v = value[torch.randint(len(table), (len(sets), 1), generator=generator)]  # (sets, 1)
        u = torch.rand(len(sets), size, generator=generator, dtype=torch.float64)
        found[sets] = by_value[first[v] + (u * count[v]).long()]
    return found


def _array(codes: Tensor) -> np.ndarray:
    return codes.detach().cpu().double().numpy()


def _table(codes: Tensor, factors: Factors, n: int | None = None) -> np.ndarray:
    """The factors of the first `n` images, or of all, checked. Shapes: -> (n, F)."""
    _check(codes, n or 2)
    if not factors:
        raise MetricError("there are no factors; sprites have some")
    if odd := {k: len(v) for k, v in factors.items() if len(v) != len(codes)}:
        raise MetricError(f"{len(codes):,} codes, but of factors {odd}; give as many of each")
    table = np.stack([np.asarray(v) for v in factors.values()], 1)[:n]
    for name, values in zip(factors, table.T, strict=True):
        if (values == values[0]).all():
            raise MetricError(f"the factor {name} has one value alone; leave it out")
    return table


def _check(codes: Tensor, n: int) -> None:
    if codes.dim() != 2 or len(codes) < n:
        raise MetricError(
            f"codes have shape {tuple(codes.shape)}; this metric needs (N, D) with N at least "
            f"{n:,}, or smaller sizes for its own"
        )
    if not codes.isfinite().all():
        raise MetricError("some codes are not finite")
    if (codes == codes[0]).all():
        raise MetricError("all codes are the same: they say nothing of any factor")


def _binned(values: np.ndarray, n_bins: int) -> np.ndarray:
    edges = np.histogram(values, n_bins)[1]
    return np.digitize(values, edges[:-1])


def entropy(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())


def _top_two(matrix: Tensor) -> Tensor:
    """The two largest of each column, the second 0 where there is one row. Shapes: -> (2, F)."""
    return torch.cat([matrix, torch.zeros(1, matrix.shape[1])]).topk(2, 0).values


def _gaps(gaps: Tensor, factors: Factors, matrix: Tensor) -> Gaps:
    return Gaps(gaps.mean().item(), dict(zip(factors, gaps.tolist(), strict=True)), matrix)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
