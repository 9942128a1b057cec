"""Compiled loops of few-shot evaluation: counter-based draws, and the SGD recursion on support scores.

Plain SGD with momentum and weight decay is linear in weights and gradients, and every gradient lies in the
span of the support features ``X``. So the scores ``S = X W^T + b`` of the support images follow the same
recursion as the weights, with ``X X^T + 1`` times the gradient in place of the gradient (the 1 is the bias, a
weight of a constant feature), and the weights themselves are needed once, at the end: ``W = c W0 + A^T X``
(METHOD.md section 5).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffsiam.evaluation.compiled import jit

LANES = 4  # support images per fused update; rows of scores are padded to a multiple

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))


# ---------------------------------------------------------------------------------------------------- draws
@jit
def _bits(key: Any, counter: Any) -> Any:
    """64 random bits, number ``counter`` of the stream ``key`` (SplitMix64 of Steele et al. 2014)."""
    z = key + np.uint64(counter + 1) * _GAMMA
    z = (z ^ (z >> _U30)) * _MIX1
    z = (z ^ (z >> _U27)) * _MIX2
    return z ^ (z >> _U31)


@jit
def _below(key: Any, counter: Any, n: Any) -> Any:
    """A random integer in 0..n-1; its bias is below n / 2^32."""
    return np.int64(((_bits(key, counter) >> _U32) * np.uint64(n)) >> _U32)


@jit
def _take(items: Any, n: Any, key: Any, counter: Any, out: Any) -> None:
    """Fill ``out`` with different items out of the first ``n``; ``items`` is left as it was."""
    picks = np.empty(out.size, np.int64)
    for i in range(out.size):
        picks[i] = i + _below(key, counter + i, n - i)
        items[i], items[picks[i]] = items[picks[i]], items[i]
        out[i] = items[i]
    for i in range(out.size - 1, -1, -1):
        items[i], items[picks[i]] = items[picks[i]], items[i]


@jit
def draw_episodes(keys: Any, members: Any, starts: Any, classes: Any, images: Any) -> None:
    """Fill ``classes`` (E, ways), numbers of usable classes, and ``images`` (E, ways, queries + support).

    ``members[starts[c]:starts[c + 1]]`` are the images of usable class ``c``.
    """
    usable = np.arange(starts.size - 1)
    ways, per_class = images.shape[1:]
    for e in range(keys.size):
        _take(usable, usable.size, keys[e], 0, classes[e])
        for w in range(ways):
            c = classes[e, w]
            n = starts[c + 1] - starts[c]
            _take(members[starts[c] :], n, keys[e], ways + w * per_class, images[e, w])


@jit
def draw_weights(key: Any, weights: Any) -> None:
    """Fill ``weights`` (ways, d + 1), the bias last, from U(-1/sqrt(d), 1/sqrt(d)): nn.Linear's default."""
    ways, width = weights.shape
    bound = 1 / np.sqrt(width - 1)
    for w in range(ways):
        for i in range(width):
            weights[w, i] = (np.float64(_bits(key, w * width + i) >> _U11) * 2.0**-52 - 1.0) * bound


@jit
def draw_order(key: Any, epoch: Any, order: Any) -> None:
    """Fill ``order`` (n,) with the permutation of the support images in one epoch (Fisher-Yates)."""
    n = order.size
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        j = _below(key, epoch * n + i, i + 1)
        order[i], order[j] = order[j], order[i]


# --------------------------------------------------------------------------------------------------- solver
@jit
def _exp(x: Any, bits: Any, power: Any) -> None:
    """``x = exp(x)`` for x <= 0, to 2 units in the last place; ``power`` views the memory of ``bits``."""
    for i in range(x.size):
        v = max(x[i], -700.0)
        n = np.floor(v * 1.4426950408889634 + 0.5)
        r = v - n * 6.93147180369123816490e-01
        r -= n * 1.90821492927058770002e-10
        p = 1.0 / 6227020800
        p = p * r + 1.0 / 479001600
        p = p * r + 1.0 / 39916800
        p = p * r + 1.0 / 3628800
        p = p * r + 1.0 / 362880
        p = p * r + 1.0 / 40320
        p = p * r + 1.0 / 5040
        p = p * r + 1.0 / 720
        p = p * r + 1.0 / 120
        p = p * r + 1.0 / 24
        p = p * r + 1.0 / 6
        p = p * r + 0.5
        p = p * r + 1.0
        x[i] = p * r + 1.0
        bits[i] = (np.int64(n) + 1023) << 52
    for i in range(x.size):
        x[i] *= power[i]


@jit
def _train(
    gram: Any, scores: Any, velocity: Any, coefficients: Any, shots: Any, key: Any, impulse: Any, sgd: Any
) -> None:
    """All epochs of one episode.

    Args:
        gram: (n, padded) X X^T + 1, n = ways * shots support images, class by class.
        scores: (ways, padded) X W0^T + b0 on entry, overwritten.
        velocity: (ways, padded) scratch for the momentum buffer's scores.
        coefficients: (n, ways) A on return.
        impulse: (steps,) weight at the end per unit of gradient at each step.
        sgd: (epochs, batch size, learning rate, momentum, dampening, weight decay).
    """
    epochs, batch, rate, momentum, dampening, decay = sgd
    n, padded = gram.shape
    ways = scores.shape[0]
    lanes = (batch + LANES - 1) // LANES * LANES
    flat = np.empty(ways * lanes)
    bits = np.empty(ways * lanes, np.int64)
    power = bits.view(np.float64)
    grad = flat.reshape(ways, lanes)  # of the loss in the batch's scores
    rows = np.zeros(lanes, np.int64)
    order = np.empty(n, np.int64)
    velocity[:] = 0.0
    coefficients[:] = 0.0
    step = 0
    for epoch in range(epochs):
        draw_order(key, epoch, order)
        for start in range(0, n, batch):
            size = min(batch, n - start)
            for b in range(lanes):
                rows[b] = order[min(start + b, n - 1)]
                top = scores[0, rows[b]]
                for w in range(1, ways):
                    top = max(top, scores[w, rows[b]])
                for w in range(ways):
                    grad[w, b] = scores[w, rows[b]] - top
            _exp(flat, bits, power)
            # torch.optim.SGD: the first momentum buffer is the raw gradient, without dampening.
            gain = 1.0 - dampening if step else 1.0
            for b in range(lanes):
                total = 0.0
                for w in range(ways):
                    total += grad[w, b]
                share = 1.0 / (size * total) if b < size else 0.0
                for w in range(ways):
                    grad[w, b] *= share
                if b < size:
                    grad[rows[b] // shots, b] -= 1.0 / size
                    for w in range(ways):
                        coefficients[rows[b], w] += impulse[step] * grad[w, b]
            for q in range(0, lanes, LANES):
                keep = (momentum if step else 0.0) if q == 0 else 1.0
                pull = gain * decay if q == 0 else 0.0
                move = rate if q + LANES >= lanes else 0.0
                g0, g1, g2, g3 = gram[rows[q]], gram[rows[q + 1]], gram[rows[q + 2]], gram[rows[q + 3]]
                for w in range(ways):
                    s, v = scores[w], velocity[w]
                    a0, a1, a2, a3 = (
                        gain * grad[w, q],
                        gain * grad[w, q + 1],
                        gain * grad[w, q + 2],
                        gain * grad[w, q + 3],
                    )
                    for j in range(padded):
                        u = keep * v[j] + pull * s[j] + a0 * g0[j] + a1 * g1[j] + a2 * g2[j] + a3 * g3[j]
                        v[j] = u
                        s[j] -= move * u
            step += 1


@jit
def _dot(a: Any, b: Any, n: Any) -> Any:
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@jit
def solve(
    features: Any,
    support: Any,
    query: Any,
    shots: Any,
    weight_keys: Any,
    order_keys: Any,
    impulses: Any,
    decays: Any,
    sgd: Any,
    predictions: Any,
) -> None:
    """Train the linear layer of each episode and number of shots, and classify its queries.

    Args:
        features: (N, d) float32.
        support: (E, ways, most shots) rows of ``features``; query: (E, ways, queries).
        shots: (K,) numbers of support images per class.
        weight_keys: (E,) and order_keys: (K, E), uint64.
        impulses: (K, most steps) and decays: (K,): see `_train`, and c of W = c W0 + A^T X.
        predictions: (K, E, ways * queries), filled with the episode's classes 0..ways-1; the first of equals.
    """
    episodes, ways, most = support.shape
    d = features.shape[1]
    n = ways * most
    x = np.empty((n, d))
    gram = np.empty((n, n))
    weights0 = np.empty((ways, d + 1))
    weights = np.empty((ways, d + 1))
    row = np.empty(d)
    for e in range(episodes):
        draw_weights(weight_keys[e], weights0)
        for i in range(n):
            x[i] = features[support[e, i // most, i % most]]
        for i in range(n):
            for j in range(i + 1):
                gram[i, j] = _dot(x[i], x[j], d) + 1.0
                gram[j, i] = gram[i, j]
        for k in range(shots.size):
            m = ways * shots[k]
            padded = (m + LANES - 1) // LANES * LANES
            g = np.zeros((m, padded))
            s = np.zeros((ways, padded))
            v = np.empty((ways, padded))
            a = np.empty((m, ways))
            for i in range(m):
                p = i // shots[k] * most + i % shots[k]
                for j in range(m):
                    g[i, j] = gram[p, j // shots[k] * most + j % shots[k]]
                for w in range(ways):
                    s[w, i] = _dot(x[p], weights0[w], d) + weights0[w, d]
            _train(g, s, v, a, shots[k], order_keys[k, e], impulses[k], sgd)
            for w in range(ways):
                for i in range(d + 1):
                    weights[w, i] = decays[k] * weights0[w, i]
                for i in range(m):
                    p = i // shots[k] * most + i % shots[k]
                    weights[w, d] += a[i, w]
                    for j in range(d):
                        weights[w, j] += a[i, w] * x[p, j]
            for q in range(predictions.shape[2]):
                row[:] = features[query[e, q // query.shape[2], q % query.shape[2]]]
                best = -np.inf
                for w in range(ways):
                    value = _dot(row, weights[w], d) + weights[w, d]
                    if value > best:
                        best = value
                        predictions[k, e, q] = w
