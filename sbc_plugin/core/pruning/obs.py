"""Greedy Optimal Brain Surgeon: the order in which the weights of each row are given up, pooled over the layer's rows.

Each row repeatedly loses the weights with the smallest ``w_p^2 / G_pp``; the others move to make up for it and ``G``,
the inverse of the Hessian of what is left, is downdated (docs/theory.md, equations 3 to 5). The losses of all steps,
pooled over the rows, decide how many weights each row gives. One weight a step is ExactOBS (Frantar and Alistarh, arXiv
2208.11580); B_in weights a step is the ordering of Shi et al. (arXiv 2506.03996).

The downdates are those of a pivoted Cholesky factorisation ``G = U^T U + rest``. They are collected as rows of ``U``
for a panel of steps and applied to ``G`` at once. Columns that cannot be removed any more are dropped from ``G``.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbc_plugin.core.hessian import LayerHessian, inverse
from sbc_plugin.core.pruning.patterns import ranks
from sbc_plugin.core.pruning.problem import Problem, pose
from sbc_plugin.errors import SettingsError, SingularHessianError

BATCH_ELEMENTS = 2**27  # of one batch of inverse Hessians (rows, columns, columns)
EXACT_COLUMNS = 512  # above this, the order of elimination is found in float32, which halves the memory traffic,
SAFE_DAMPING = 0.005  # but only with this damping or more: with less the downdates may need more digits
PANEL = 16  # columns eliminated between two updates of G
SHRINK = 0.85  # columns that are done are dropped once at most this fraction is left


def obs_mask(
    weight: Tensor,
    hessian: LayerHessian,
    zeros: int,
    *,
    pattern: str = "unstructured",
    positions: int = 1,
    step: int | None = None,
) -> Tensor:
    """The mask (rows, columns), True = kept, of greedy OBS with exactly ``zeros`` zeros.

    Args:
        weight: (rows, columns).
        hessian: of the layer.
        zeros: zeros the layer shall have; blocks round it down, and N:M takes only the number it implies.
        pattern: "unstructured", "N:M" or "block:K".
        positions: kernel positions, so that column = channel * positions + position.
        step: weights that a row loses at once (B_in); 1 is exact, None is ceil(columns / 256). Whole blocks, at least
            one.

    >>> hessian = LayerHessian(torch.tensor([[2.0, 1.8], [1.8, 2.0]]), damping=0.0)
    >>> obs_mask(torch.tensor([[1.0, 1.1], [5.0, 5.0]]), hessian, 2).tolist()
    [[False, False], [True, True]]

    Raises:
        SettingsError: a setting does not fit the layer.
        CalibrationError: weight and Hessian do not belong together.
        SingularHessianError: the damped Hessian is not positive definite.
    """
    problem = pose(weight, hessian, zeros, pattern=pattern, positions=positions)
    if step is not None and step < 1:
        raise SettingsError(f"step is {step}, expected 1 or more weights a step")
    if problem.zeros == 0:
        return problem.mask(torch.zeros_like(problem.candidates))
    return problem.mask(pool(*elimination(problem, step), problem, problem.zeros))


def elimination(problem: Problem, step: int | None) -> tuple[Tensor, Tensor]:
    """The order in which every row gives up all its weights, and their losses, as :func:`pool` takes them.

    Without N:M it does not depend on how many zeros are asked for: masks of several sparsities may be cut from it.

    Args:
        problem: the layer.
        step: weights that a row loses at once; None is ceil(columns / 256).

    Raises:
        SingularHessianError: the damped Hessian is not positive definite.
    """
    columns = len(problem.columns)
    dtype = search_dtype(problem)
    start = inverse(problem.hessian, problem.damping).to(dtype)
    size = max(1, BATCH_ELEMENTS // columns**2)
    orders, losses = [], []
    for rows in torch.arange(len(problem.weight), device=start.device).split(size):
        capacity = problem.capacity[rows] if problem.pattern.kind == "n:m" else None
        order, loss = eliminate(
            problem.weight[rows].to(dtype),
            start[problem.owner[rows]],
            problem.candidates[rows],
            block=problem.pattern.size if problem.pattern.kind == "block" else 1,
            step=-(-columns // 256) if step is None else step,
            capacity=capacity,
        )
        orders.append(order)
        losses.append(loss)
    # Rows with fewer candidates, since they were pruned before, end earlier, so that their batch has fewer steps.
    steps = max(order.shape[1] for order in orders)
    order = torch.cat([pad(order, (0, steps - order.shape[1])) for order in orders])
    return order, torch.cat([pad(loss, (0, steps - loss.shape[1]), value=float("inf")) for loss in losses])


def search_dtype(problem: Problem) -> torch.dtype:
    """The dtype in which an order of elimination is found: the Hessian's, or float32 for many, well damped columns."""
    many = len(problem.columns) > EXACT_COLUMNS and problem.damping >= SAFE_DAMPING
    return torch.float32 if many else problem.hessian.dtype


def pool(order: Tensor, loss: Tensor, problem: Problem, zeros: int) -> Tensor:
    """Removed weights (rows, columns): the cheapest eliminations of all rows, each row's in its own order.

    Args:
        order: (rows, steps), the units (weights or blocks) of each row as eliminated.
        loss: (rows, steps), what each elimination cost; infinite where a row had nothing left to eliminate.
        problem: the layer and its pattern.
        zeros: how many weights to remove; N:M removes all that was eliminated.
    """
    size = problem.pattern.size if problem.pattern.kind == "block" else 1
    removed = torch.zeros(len(order), problem.weight.shape[1] // size, dtype=torch.bool, device=order.device)
    if problem.pattern.kind == "n:m":
        chosen = loss.isfinite()
    else:  # a running maximum, so that no row gives a later weight before an earlier one; the stable sort keeps ties so
        ranking = loss.cummax(1).values.flatten().argsort(stable=True)
        count = torch.bincount(ranking[: zeros // size] // loss.shape[1], minlength=len(order))
        chosen = torch.arange(loss.shape[1], device=order.device) < count[:, None]
    rows, steps = chosen.nonzero(as_tuple=True)
    removed[rows, order[rows, steps]] = True
    return removed.repeat_interleave(size, dim=1)


def eliminate(
    weight: Tensor,
    inverse: Tensor,
    candidates: Tensor,
    *,
    block: int = 1,
    step: int = 1,
    capacity: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eliminate the candidates of each row, cheapest first; all rows in step.

    Args:
        weight: (rows, columns).
        inverse: (rows, columns, columns), the inverse Hessian of each row. It is overwritten.
        candidates: (rows, columns), weights that may go; a block may go if any of its weights may.
        block: columns that go together, a unit.
        step: weights a row loses at once.
        capacity: (rows, columns // M), how many each group of M columns can give; None: all.

    Returns:
        order (rows, steps), the units of each row in the order of their elimination, and loss (rows, steps), the
        increase of ``1/2 e^T H e`` by each, infinite where a row had nothing left.

    Raises:
        SingularHessianError: rounding left the downdated inverse without a factor.
    """
    rows, columns = weight.shape
    row = torch.arange(rows, device=weight.device)[:, None]
    G, w, candidates = inverse, weight.clone(), candidates.view(rows, -1, block).any(-1)  # (rows, units) from now on
    unit = torch.arange(columns // block, device=weight.device).expand(rows, -1)  # its number, whatever was dropped
    M = columns if capacity is None else columns // capacity.shape[1]
    if capacity is not None:
        candidates &= (capacity > 0).repeat_interleave(M, dim=1)
        left = torch.minimum(capacity, candidates.view(*capacity.shape, -1).sum(-1)).sum(1)
    else:
        left = candidates.sum(1)
    width = max(1, step // block)  # units a step
    orders, losses = [], []
    while left.any():
        # 1. A panel begins. Its steps fill rows of U; G stays as it is, only its diagonal blocks D are kept up to date.
        U = G.new_zeros(rows, -(-PANEL // (width * block)) * width * block, w.shape[1])
        D = block_diagonal(G, block)
        for at in range(0, U.shape[1], width * block):
            # 2. The cheapest units of each row (equation 4).
            score = saliency(w, D, candidates)
            if capacity is not None and width > 1:
                score = within_capacity(score, unit, capacity, M)
            best = score.topk(min(width, int(left.max())), largest=False, sorted=True)
            chosen, valid = best.indices, best.values.isfinite()
            P = columns_of(chosen, block)
            # 3. Their rows of G as they are now, and the rows of U that eliminate them.
            new = torch.baddbmm(G[row, P], U[row, :at, P], U[:, :at], alpha=-1) if at else G[row, P]
            new, y = downdate(new, w, P, valid.repeat_interleave(block, dim=1))
            U[:, at : at + P.shape[1]] = new
            # 4. The other weights move to make up for them (equation 3), and D is downdated (equation 5).
            w -= torch.bmm(y[:, None], new)[:, 0]
            per_unit = new.view(rows, P.shape[1], -1, block)
            D -= torch.einsum("rpui,rpuj->ruij", per_unit, per_unit)
            # 5. What went, what it cost, and what may still go.
            orders.append(unit.gather(1, chosen))
            losses.append((y.square().view(*chosen.shape, block).sum(-1) / 2).masked_fill(~valid, float("inf")))
            candidates[row, chosen] &= ~valid
            if capacity is not None:
                capacity = capacity.scatter_add(1, orders[-1] // M, -valid.to(capacity))
                candidates &= capacity.gather(1, unit // M) > 0
            left -= valid.sum(1)
            if not left.any():
                break
        # 6. The panel ends: G takes all its downdates at once and loses the columns that are done.
        if left.any():
            G, w, candidates, unit = shrink(G.baddbmm_(U.mT, U, alpha=-1), w, candidates, unit, block)
    return torch.cat(orders, dim=1), torch.cat(losses, dim=1)


def columns_of(units: Tensor, block: int) -> Tensor:
    """The columns (rows, n * block) of units (rows, n)."""
    return (units[..., None] * block + torch.arange(block, device=units.device)).flatten(1)


def block_diagonal(G: Tensor, block: int) -> Tensor:
    """A copy of the diagonal blocks (rows, units, block, block) of ``G`` (rows, columns, columns)."""
    units = G.shape[1] // block
    return G.view(-1, units, block, units, block).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()


def saliency(w: Tensor, D: Tensor, candidates: Tensor) -> Tensor:
    """``w_B^T (G_BB)^-1 w_B`` of each unit, (rows, units); infinite if it is no candidate (docs/theory.md, equation 4).

    Args:
        w: (rows, columns).
        D: (rows, units, block, block), ``G_BB`` of each unit.
        candidates: (rows, units).

    Raises:
        SingularHessianError: rounding left a unit without a loss.
    """
    if D.shape[-1] == 1:
        score = w.square() / D[..., 0, 0]
        positive = D[..., 0, 0] > 0
    else:
        eye = torch.eye(D.shape[-1], dtype=D.dtype, device=D.device)
        factor, info = torch.linalg.cholesky_ex(torch.where(candidates[..., None, None], D, eye))
        y = torch.linalg.solve_triangular(factor, w.view(*candidates.shape, -1, 1), upper=False)
        score = y.square().sum((-2, -1))
        positive = info == 0
    if not ((positive & score.isfinite()) | ~candidates).all():
        raise SingularHessianError(f"elimination over {w.shape[1]} columns lost its precision; raise `damping`")
    return score.masked_fill(~candidates, float("inf"))


def within_capacity(score: Tensor, unit: Tensor, capacity: Tensor, size: int) -> Tensor:
    """``score`` (rows, units), infinite beyond the ``capacity`` (rows, groups) cheapest of each group of ``size``."""
    whole = score.new_full((len(score), capacity.shape[1] * size), float("inf")).scatter_(1, unit, score)
    rank = ranks(whole.view(len(score), -1, size)).flatten(1).gather(1, unit)
    return score.masked_fill(rank >= capacity.gather(1, unit // size), float("inf"))


def downdate(new: Tensor, w: Tensor, P: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``U`` that eliminate ``P``: ``L^-1 G[P, :]`` with ``L L^T = G[P, P]``, and ``L^-1 w_P``.

    The squares of the latter, halved, are the losses of eliminating P one after the other.

    Args:
        new: (rows, p, columns), ``G[P, :]``.
        w: (rows, columns).
        P: (rows, p), columns.
        valid: (rows, p), False where a row does not eliminate.

    Returns:
        (rows, p, columns) and (rows, p).

    Raises:
        SingularHessianError: rounding left ``G[P, P]`` without a factor.
    """
    new, target = new * valid[..., None], w.gather(1, P) * valid
    corner = new.gather(2, P[:, None].expand(-1, P.shape[1], -1)) * valid[:, None]
    corner.diagonal(dim1=1, dim2=2).masked_fill_(~valid, 1.0)
    if P.shape[1] == 1:
        if not (corner > 0).all():
            raise SingularHessianError(f"elimination over {w.shape[1]} columns lost its precision; raise `damping`")
        return new / corner.sqrt(), target / corner[..., 0].sqrt()
    factor, info = torch.linalg.cholesky_ex(corner)
    if info.any():
        raise SingularHessianError(f"elimination over {w.shape[1]} columns lost its precision; raise `damping`")
    both = torch.linalg.solve_triangular(factor, torch.cat([new, target[..., None]], dim=2), upper=False)
    return both[..., :-1], both[..., -1]


def shrink(G: Tensor, w: Tensor, candidates: Tensor, unit: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop the columns that are no candidates once they are many: no weight that may still go depends on them."""
    row = torch.arange(len(w), device=w.device)[:, None]
    count = int(candidates.sum(1).max())
    if count > SHRINK * candidates.shape[1]:
        return G, w, candidates, unit
    kept = (~candidates).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    columns = columns_of(kept, block)
    G = G[row[..., None], columns[:, :, None], columns[:, None, :]]
    return G, w.gather(1, columns), candidates.gather(1, kept), unit.gather(1, kept)
