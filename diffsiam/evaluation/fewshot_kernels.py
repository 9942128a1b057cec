"""Compiled loops of few-shot evaluation: counter-based draws, and the SGD recursion on support scores.

Plain SGD with momentum and weight decay is linear in weights and gradients, and every gradient lies in the
span of the support features ``X``. So the scores ``S = X W^T + b`` of the support images follow the same
recursion as the weights, with ``X X^T + 1`` times the gradient in place of the gradient (the 1 is the bias, a
weight of a constant feature), and the weights themselves are needed once, at the end: ``W = c W0 + A^T X``.

The layout serves the vectoriser. Rows that one loop writes lie at constant distances in one flat array (``SPAN``
support images, ``LANES`` samples), so no run-time check for overlap is needed; offsets are unsigned, so no index
can wrap; ``classes`` is a tuple, so its length is a constant of the compiled code; and ``GROUP`` episodes advance
side by side, so that one's softmax does not wait for another's update. The module is longer than others because it
must be one: see `diffsiam.evaluation.compiled` on numba's cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from diffsiam.evaluation.compiled import jit

GROUP = 4
TILE = 4  # support images per update, and rows and columns per tile of products
SPAN = 64
LANES = 16

_U = np.uint64
_GAMMA, _MIX1, _MIX2 = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = _U(11), _U(27), _U(30), _U(31), _U(32)

_LOG2E, _LN2 = 1.4426950408889634, 0.6931471805599453
# 1.5 * 2^52 + 1023: added to a double it rounds it to an integer, which the low bits then hold as an exponent.
_ROUND = 6755399441056767.0


# ---------------------------------------------------------------------------------------------------- draws
@jit
def _bits(key: Any, counter: Any) -> Any:
    """64 random bits, number ``counter`` of the stream ``key`` (SplitMix64, Steele et al. 2014)."""
    z = key + _U(counter + 1) * _GAMMA
    z = (z ^ (z >> _U30)) * _MIX1
    z = (z ^ (z >> _U27)) * _MIX2
    return z ^ (z >> _U31)


@jit
def _below(key: Any, counter: Any, n: Any) -> Any:
    """A random integer in 0..n-1; its bias is below n / 2^32."""
    return ((_bits(key, counter) >> _U32) * _U(n)) >> _U32


@jit
def _take(items: Any, n: Any, key: Any, counter: Any, out: Any) -> None:
    """Fill ``out`` with different items out of the first ``n``; ``items`` is left as it was."""
    picks = np.empty(out.size, np.int64)
    for i in range(out.size):
        picks[i] = i + np.int64(_below(key, counter + i, n - i))
        items[i], items[picks[i]] = items[picks[i]], items[i]
        out[i] = items[i]
    for i in range(out.size - 1, -1, -1):
        items[i], items[picks[i]] = items[picks[i]], items[i]


@jit
def draw_episodes(keys: Any, members: Any, starts: Any, classes: Any, images: Any) -> None:
    """Fill ``classes`` (E, ways), numbers of usable classes, and ``images`` (E, ways, images per class).

    ``members[starts[c]:starts[c + 1]]`` are the images of usable class ``c``.
    """
    usable = np.arange(starts.size - 1)
    ways = images.shape[1]
    for e in range(keys.size):
        _take(usable, usable.size, keys[e], 0, classes[e])
        for w in range(ways):
            c = classes[e, w]
            n = starts[c + 1] - starts[c]
            _take(members[starts[c] :], n, keys[e], (w + 1) << 32, images[e, w])


@jit
def draw_weights(key: Any, weights: Any, bias: Any) -> None:
    """Fill ``weights`` (ways, d) and ``bias`` (ways,) from U(-1/sqrt(d), 1/sqrt(d)): nn.Linear's default."""
    ways, d = weights.shape
    bound = 1.0 / np.sqrt(d)
    for w in range(ways):
        bias[w] = (np.int64(_bits(key, w) >> _U11) * 2.0**-52 - 1.0) * bound
        for i in range(d):
            weights[w, i] = (np.int64(_bits(key, ways + w * d + i) >> _U11) * 2.0**-52 - 1.0) * bound


@jit
def draw_order(key: Any, epoch: Any, order: Any) -> None:
    """Fill ``order`` (n,) uint64 with the permutation of the support images in one epoch (Fisher-Yates)."""
    n = order.size
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        j = _below(key, epoch * n + i, i + 1)
        order[_U(i)], order[j] = order[j], order[_U(i)]


# ----------------------------------------------------------------------------------------------- arithmetic
@numba.njit(nogil=True, fastmath={"contract"}, forceinline=True)
def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, to 5e-16 near 0 and 3e-14 near -700, where it stays: a polynomial times a power of 2."""
    x = max(x, -700.0)
    y = x * _LOG2E + _ROUND
    r = x - (y - _ROUND) * _LN2
    p = 2.7626371065696354e-07  # interpolates exp at the Chebyshev nodes of [-ln(2)/2, ln(2)/2]
    p = p * r + 2.764019739169484e-06
    p = p * r + 2.480150431378554e-05
    p = p * r + 0.00019841170230570286
    p = p * r + 0.001388888893251478
    p = p * r + 0.008333333385699212
    p = p * r + 0.041666666666573066
    p = p * r + 0.16666666666554314
    p = p * r + 0.5000000000000006
    p = p * r + 1.0000000000000067
    p = p * r + 1.0
    return p * np.int64(np.float64(y).view(np.int64) << 52).view(np.float64)


@jit
def _tile(x: Any, d: Any, i: Any, j: Any, last: Any) -> Any:
    """Products of rows i..i+3 with rows j..j+3 of the flat (last + 1, d) ``x``; beyond ``last`` they repeat it."""
    a0, a1, a2, a3 = _U(i * d), _U(min(i + 1, last) * d), _U(min(i + 2, last) * d), _U(min(i + 3, last) * d)
    b0, b1, b2, b3 = _U(j * d), _U(min(j + 1, last) * d), _U(min(j + 2, last) * d), _U(min(j + 3, last) * d)
    p00 = p01 = p02 = p03 = p10 = p11 = p12 = p13 = 0.0
    p20 = p21 = p22 = p23 = p30 = p31 = p32 = p33 = 0.0
    for k in range(_U(d)):
        x0, x1, x2, x3 = x[a0 + k], x[a1 + k], x[a2 + k], x[a3 + k]
        y0, y1, y2, y3 = x[b0 + k], x[b1 + k], x[b2 + k], x[b3 + k]
        p00, p01, p02, p03 = p00 + x0 * y0, p01 + x0 * y1, p02 + x0 * y2, p03 + x0 * y3
        p10, p11, p12, p13 = p10 + x1 * y0, p11 + x1 * y1, p12 + x1 * y2, p13 + x1 * y3
        p20, p21, p22, p23 = p20 + x2 * y0, p21 + x2 * y1, p22 + x2 * y2, p23 + x2 * y3
        p30, p31, p32, p33 = p30 + x3 * y0, p31 + x3 * y1, p32 + x3 * y2, p33 + x3 * y3
    return p00, p01, p02, p03, p10, p11, p12, p13, p20, p21, p22, p23, p30, p31, p32, p33


@jit
def _products(x: Any, out: Any) -> None:
    """``out = x x^T`` for x (n, d)."""
    n, d = x.shape
    flat = x.ravel()
    for i in range(0, n, TILE):
        for j in range(0, i + 1, TILE):
            products = _tile(flat, d, i, j, n - 1)
            for a in range(min(TILE, n - i)):
                for b in range(min(TILE, n - j)):
                    out[i + a, j + b] = out[j + b, i + a] = products[a * TILE + b]


@jit
def _dot(a: Any, b: Any) -> Any:
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


# ------------------------------------------------------------------------------------------------- training
@jit
def _slot(lane: Any, ways: Any) -> Any:
    """Where class 0 of sample ``lane`` lies in the flat gradient; the next class is LANES further."""
    return _U((lane >> 4) * ways * LANES + (lane & 15))


@jit
def _softmax(grad: Any, lanes: Any, classes: Any, scale: Any) -> None:
    """Turn scores into ``scale`` times their softmax over classes, for the first ``lanes`` samples."""
    for start in range(0, lanes, LANES):
        at = _slot(start, len(classes))
        for i in range(_U((min(LANES, lanes - start) + 3) // 4 * 4)):
            top = grad[at + i]
            for w in range(len(classes)):
                top = max(top, grad[at + _U(w * LANES) + i])
            total = 0.0
            for w in range(len(classes)):
                e = _exp(grad[at + _U(w * LANES) + i] - top)
                total += e
                grad[at + _U(w * LANES) + i] = e
            share = scale / total
            for w in range(len(classes)):
                grad[at + _U(w * LANES) + i] *= share


@jit
def _update(
    gram: Any, state: Any, grad: Any, classes: Any, rows: Any, columns: Any, scores: Any, span: Any, sgd: Any
) -> None:
    """One momentum step of the scores of ``span`` support images, by the gradients of four of them."""
    r0, r1, r2, r3 = rows
    c0, c1, c2, c3 = columns
    keep, pull, move = sgd
    velocity = scores + _U(len(classes) * SPAN)
    for j in range(span):
        x0, x1, x2, x3 = gram[r0 + j], gram[r1 + j], gram[r2 + j], gram[r3 + j]
        for w in range(len(classes)):
            at, by = _U(w * SPAN) + j, _U(w * LANES)
            s = state[scores + at]
            v = keep * state[velocity + at] + pull * s
            v += grad[c0 + by] * x0 + grad[c1 + by] * x1 + grad[c2 + by] * x2 + grad[c3 + by] * x3
            state[velocity + at] = v
            state[scores + at] = s - move * v


@jit
def _step(gram: Any, state: Any, grad: Any, classes: Any, order: Any, start: Any, size: Any, sgd: Any) -> None:
    """Apply the gradients of the batch ``order[p, start:start + size]`` in every episode p."""
    keep, pull, move = sgd
    group, n, padded = gram.shape
    blocks = state.shape[1]
    ways = len(classes)
    flat_gram, flat_state = gram.ravel(), state.ravel()
    nothing = _U(grad.size - ways * LANES)  # lanes that stay zero stand in for samples that a tile lacks
    for p in range(group):
        for q in range(0, size, TILE):
            lane = p * size + q
            columns = (
                _slot(lane, ways),
                _slot(lane + 1, ways) if q + 1 < size else nothing,
                _slot(lane + 2, ways) if q + 2 < size else nothing,
                _slot(lane + 3, ways) if q + 3 < size else nothing,
            )
            first, last = start + q, start + size - 1
            i0, i1 = order[p, first], order[p, min(first + 1, last)]
            i2, i3 = order[p, min(first + 2, last)], order[p, min(first + 3, last)]
            now = (keep if q == 0 else 1.0, pull if q == 0 else 0.0, move if q + TILE >= size else 0.0)
            for k in range(blocks):
                base, width = _U(p * n * padded + k * SPAN), _U(padded)
                rows = (base + i0 * width, base + i1 * width, base + i2 * width, base + i3 * width)
                scores, span = _U((p * blocks + k) * 2 * ways * SPAN), _U(min(SPAN, padded - k * SPAN))
                _update(flat_gram, flat_state, grad, classes, rows, columns, scores, span, now)


@jit
def _train(
    gram: Any, state: Any, coefficients: Any, classes: Any, shots: Any, keys: Any, impulse: Any, sgd: Any
) -> None:
    """All epochs of a group of episodes.

    Args:
        gram: (group, n, padded) X X^T + 1 of n = ways * shots support images, class by class; zero in the padding.
        state: (group, blocks, 2 * ways, SPAN): X W0^T + b0 on entry, above zeros for its momentum buffer.
        coefficients: (group, n, ways), zero on entry, A on return.
        keys: (group,) of the batch orders.
        impulse: (steps,) what a unit in the momentum buffer at each step leaves in the final weights.
        sgd: epochs, batch size, learning rate, momentum, dampening, weight decay.
    """
    epochs, batch, rate, momentum, dampening, decay = sgd
    group, n, _ = gram.shape
    ways = len(classes)
    target = np.arange(n) // shots * LANES
    order = np.empty((group, n), np.uint64)
    lane_blocks = (group * batch + LANES - 1) // LANES
    grad = np.zeros((lane_blocks + 1) * ways * LANES)
    step = 0
    for epoch in range(epochs):
        for p in range(group):
            draw_order(keys[p], epoch, order[p])
        for start in range(0, n, batch):
            size = min(batch, n - start)
            for p in range(group):
                for b in range(size):
                    i, at = order[p, start + b], _slot(p * size + b, ways)
                    for w in range(ways):
                        grad[at + _U(w * LANES)] = state[p, i // _U(SPAN), w, i % _U(SPAN)]
            # torch.optim.SGD: the first momentum buffer is the raw gradient, without dampening.
            gain = 1.0 - dampening if step else 1.0
            _softmax(grad, group * size, classes, gain / size)
            for p in range(group):
                for b in range(size):
                    i, at = order[p, start + b], _slot(p * size + b, ways)
                    grad[at + _U(target[i])] -= gain / size
                    for w in range(ways):
                        coefficients[p, i, w] += impulse[step] * grad[at + _U(w * LANES)]
            keep = momentum if step else 0.0
            _step(gram, state, grad, classes, order, start, size, (keep, gain * decay, rate))
            step += 1


# -------------------------------------------------------------------------------------------------- queries
@jit
def _classify(features: Any, norms: Any, rows: Any, weights: Any, bias: Any, classes: Any, predictions: Any) -> None:
    """Class of the largest score of each row, the first of equals, as float64 arithmetic gives it.

    Scores are taken in float32; a row whose two best lie closer than twice the bound on their rounding errors,
    ``d 2^-24 |x| |w|``, is scored again in float64.
    """
    d = features.shape[1]
    flat, single = features.ravel(), weights.astype(np.float32).ravel()
    steepest = 0.0
    for w in range(len(classes)):
        steepest = max(steepest, np.sqrt(_dot(weights[w], weights[w])))
    scores = np.empty((TILE, len(classes)))
    last = rows.size - 1
    for q in range(0, rows.size, TILE):
        r0, r1 = _U(rows[q] * d), _U(rows[min(q + 1, last)] * d)
        r2, r3 = _U(rows[min(q + 2, last)] * d), _U(rows[min(q + 3, last)] * d)
        for w in range(len(classes)):
            at = _U(w * d)
            s0 = s1 = s2 = s3 = np.float32(0)
            for k in range(_U(d)):
                y = single[at + k]
                s0, s1 = s0 + flat[r0 + k] * y, s1 + flat[r1 + k] * y
                s2, s3 = s2 + flat[r2 + k] * y, s3 + flat[r3 + k] * y
            scores[0, w], scores[1, w], scores[2, w], scores[3, w] = s0, s1, s2, s3
        for i in range(min(TILE, rows.size - q)):
            slack = 2 * (d + 8) * 2.0**-24 * norms[rows[q + i]] * steepest
            predictions[q + i], margin = _best(scores[i], bias)
            if not margin > slack:
                for w in range(len(classes)):
                    scores[i, w] = _dot(features[rows[q + i]], weights[w])
                predictions[q + i], margin = _best(scores[i], bias)


@jit
def _best(scores: Any, bias: Any) -> Any:
    """The class of the largest score plus bias, and its lead over the next."""
    best, top, second = 0, scores[0] + bias[0], -np.inf
    for w in range(1, scores.size):
        value = scores[w] + bias[w]
        if value > top:
            best, top, second = w, value, top
        elif value > second:
            second = value
    return best, top - second


# --------------------------------------------------------------------------------------------------- episodes
@jit
def _final(x: Any, bias0: Any, chosen: Any, coefficients: Any, decay: Any, weights: Any, bias: Any) -> None:
    """Fill ``weights`` with c W0 + A^T X and ``bias`` alike; W0 lies in the last rows of ``x``."""
    ways, d = weights.shape
    m, first = chosen.size, x.shape[0] - ways
    flat = x.ravel()
    for w in range(ways):
        row, initial = weights[w], x[first + w]
        bias[w] = decay * bias0[w]
        for j in range(d):
            row[j] = decay * initial[j]
        for i in range(m):
            bias[w] += coefficients[i, w]
        for i in range(0, m, TILE):
            i1, i2, i3 = min(i + 1, m - 1), min(i + 2, m - 1), min(i + 3, m - 1)
            r0, r1, r2, r3 = _U(chosen[i] * d), _U(chosen[i1] * d), _U(chosen[i2] * d), _U(chosen[i3] * d)
            a0, a1 = coefficients[i, w], coefficients[i1, w] if i + 1 < m else 0.0
            a2, a3 = coefficients[i2, w] if i + 2 < m else 0.0, coefficients[i3, w] if i + 3 < m else 0.0
            for j in range(_U(d)):
                row[j] += a0 * flat[r0 + j] + a1 * flat[r1 + j] + a2 * flat[r2 + j] + a3 * flat[r3 + j]


@jit
def solve(
    features: Any, norms: Any, support: Any, query: Any, classes: Any, shots: Any, weight_keys: Any,
    order_keys: Any, impulses: Any, decays: Any, sgd: Any, predictions: Any,
) -> None:  # fmt: skip
    """Train the linear layer of each episode and number of shots, and classify its queries.

    Args:
        features: (N, d) float32; norms: (N,) of its rows.
        support: (E, ways, most shots) rows of ``features``; query: (E, ways * queries).
        classes: a tuple of ``ways`` integers.
        shots: (K,) numbers of support images per class.
        weight_keys: (E,) and order_keys: (K, E), uint64.
        impulses: (K, most steps) and decays: (K,): see `_train`, and c of W = c W0 + A^T X.
        predictions: (K, E, ways * queries), filled with 0..ways-1.
    """
    episodes, ways, most = support.shape
    d, n = features.shape[1], ways * most
    x = np.empty((GROUP, n + ways, d))  # support features, then W0
    products = np.empty((GROUP, n + ways, n + ways))
    bias0 = np.empty((GROUP, ways))
    weights, bias = np.empty((ways, d)), np.empty(ways)
    for e in range(0, episodes, GROUP):
        group = min(GROUP, episodes - e)
        for p in range(group):
            for i in range(n):
                x[p, i] = features[support[e + p, i // most, i % most]]
            draw_weights(weight_keys[e + p], x[p, n:], bias0[p])
            _products(x[p], products[p])
        for k in range(shots.size):
            chosen = np.arange(n).reshape(ways, most)[:, : shots[k]].copy().ravel()
            gram, state = _start(products[:group], bias0, chosen, n)
            coefficients = np.zeros((group, chosen.size, ways))
            _train(gram, state, coefficients, classes, shots[k], order_keys[k, e : e + group], impulses[k], sgd)
            for p in range(group):
                _final(x[p], bias0[p], chosen, coefficients[p], decays[k], weights, bias)
                _classify(features, norms, query[e + p], weights, bias, classes, predictions[k, e + p])


@jit
def _start(products: Any, bias: Any, chosen: Any, n: Any) -> Any:
    """``gram`` and ``state`` as `_train` takes them, for the ``chosen`` support images."""
    group, ways = products.shape[0], products.shape[1] - n
    m = chosen.size
    padded = (m + 3) // 4 * 4
    gram = np.zeros((group, m, padded))
    state = np.zeros((group, (padded + SPAN - 1) // SPAN, 2 * ways, SPAN))
    for p in range(group):
        for i in range(m):
            for j in range(m):
                gram[p, i, j] = products[p, chosen[i], chosen[j]] + 1.0
            for w in range(ways):
                state[p, i // SPAN, w, i % SPAN] = products[p, chosen[i], n + w] + bias[p, w]
    return gram, state
