"""Oracles for radii: what a shift of noise can do at worst, by Neyman and Pearson, on points of the noise itself."""

from __future__ import annotations

import numpy as np
from scipy import special, stats

DIRECTIONS = {
    "L1": lambda u: np.sign(u - 0.5) * -np.log1p(-np.abs(2 * u - 1)),
    "L2": special.ndtri,
    "Linf": lambda u: 2 * u - 1,
}
ORDER = {"L1": 1, "L2": 2, "Linf": np.inf}


def points(noise, dim, power=18):
    """2^power points of equal weight, by Sobol's sequence for the elements, or the direction and the norm."""
    u = np.clip(stats.qmc.Sobol(dim + 1, seed=0).random_base2(power), 1e-12, 1 - 1e-12)
    name = type(noise).__name__
    if name == "Uniform":
        return noise.scale * DIRECTIONS["Linf"](u[:, :dim])
    if name == "Laplace":
        return noise.scale * DIRECTIONS["L1"](u[:, :dim])
    if name == "Gaussian":
        return noise.sigma * special.ndtri(u[:, :dim])
    z = DIRECTIONS[noise.SHAPE](u[:, :dim])
    z /= np.linalg.norm(z, ord=ORDER[noise.SHAPE], axis=1, keepdims=True)
    return noise.scale * norm_at(noise, u[:, dim], dim)[:, None] * z


def norm_at(noise, u, dim):
    """The quantile of the norm, by scipy's distributions."""
    name = type(noise).__name__
    if name == "UniformBall":
        return u ** (1 / dim)
    if name.startswith("Exp"):
        return stats.gamma.ppf(u, (dim - noise.j) / noise.k) ** (1 / noise.k)
    return stats.betaprime.ppf(u, dim / noise.k, noise.a - dim / noise.k) ** (1 / noise.k)


def log_density(noise, z):
    """But for a constant."""
    name, z = type(noise).__name__, z / getattr(noise, "scale", 1.0)
    if name == "Uniform":
        return np.where(np.abs(z).max(1) <= 1, 0.0, -np.inf)
    if name == "Laplace":
        return -np.abs(z).sum(1)
    r = np.linalg.norm(z, ord=ORDER[noise.SHAPE], axis=1)
    if name == "UniformBall":
        return np.where(r <= 1, 0.0, -np.inf)
    if name.startswith("Exp"):
        return -(r**noise.k) - (noise.j * np.log(r) if noise.j else 0.0)
    return -noise.a * np.log1p(r**noise.k)


def needed(noise, z, shift):
    """The least probability of a set under the noise that leaves it 1/2 wherever it is, once the noise is shifted.

    The worst set leaves out where the shifted density is largest in proportion, until half of it is left out.
    """
    both = np.concatenate([z, z + shift])  # of the mean of the two densities, so that no weight is large
    ratio = log_density(noise, both - shift) - log_density(noise, both)
    ratio = -np.sort(-ratio)
    before, after = special.expit(-ratio) / len(z), special.expit(ratio) / len(z)
    assert abs(before.sum() - 1) < 2e-3
    left_out = np.searchsorted(np.cumsum(after), 0.5 * after.sum())
    return 1 - before[:left_out].sum() / before.sum()


def shifts(norm, dim, count=4):
    """Corners of the norm's unit ball, and other points of its surface."""
    generator = np.random.default_rng(dim)
    corner = np.eye(dim)[0] if norm in ("L1", "L2") else np.ones(dim)
    other = generator.normal(size=(count, dim))
    return [corner, *(other / np.linalg.norm(other, ord=ORDER[norm], axis=1, keepdims=True))]


def needed_l2(noise, dim, radius, nodes=4000):
    """`needed` for radial noise and a shift of this length in L2, in any dimension: the level set's probability by
    quadrature over the norm, its part of each sphere by the beta distribution.
    """
    u = (np.arange(nodes) + 0.5) / nodes
    r, e = norm_at(noise, u, dim), radius / noise.scale

    def beyond(t):  # P(log of the ratio of the shifted density > t)
        level = radial(noise, r) + t
        low, high = np.full(nodes, -80.0), np.full(nodes, 80.0)
        for _ in range(80):  # where the density, which falls with the norm, has that level
            middle = (low + high) / 2
            above = radial(noise, np.exp(middle)) > level
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        s = np.where(level >= radial(noise, np.exp(np.full(nodes, -80.0))), 0.0, np.exp(low))
        cosine = np.clip((r * r + e * e - s * s) / (2 * r * e), -1, 1)
        tail = special.betainc((dim - 1) / 2, 0.5, 1 - cosine**2) / 2
        return float(np.mean(np.where(cosine > 0, tail, 1 - tail)))

    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(-middle) < 0.5 else (low, middle)
    return 1 - beyond(low)


def radial(noise, r):
    if type(noise).__name__ == "Exp2":
        return -(r**noise.k) - (noise.j * np.log(r) if noise.j else 0.0)
    return -noise.a * np.log1p(r**noise.k)
