"""Greedy Optimal Brain Surgeon: the order in which the weights of each row are given up, pooled over the layer's rows.

Each row repeatedly loses the weights with the smallest ``w_p^2 / G_pp``; the others move to make up for it and ``G``,
the inverse of the Hessian of what is left, is downdated (docs/theory.md, equations 3 to 5). The loss of each step,
pooled over all rows, tells how many weights each row gives. One weight a step is ExactOBS (Frantar and Alistarh, arXiv
2208.11580), B_in weights a step the ordering of Shi et al. (arXiv 2506.03996).

The downdates are those of a pivoted Cholesky factorisation ``G = U^T U + rest``. They are collected as rows of ``U``
for a panel of steps and applied to ``G`` at once, and columns that cannot be removed any more are dropped from ``G``.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sbc_plugin.core.hessian import LayerHessian, inverse
from sbc_plugin.core.pruning.patterns import ranks
from sbc_plugin.core.pruning.problem import Problem, pose
from sbc_plugin.errors import SettingsError, SingularHessianError

BATCH_ELEMENTS = 2**27  # of one batch of inverse Hessians (rows, columns, columns)
EXACT_COLUMNS = 512  # above, the order of elimination is found in float32, for half the memory traffic,
SAFE_DAMPING = 0.005  # but only with this damping or more: without it the downdates may need more digits
PANEL = 16  # columns eliminated between two updates of G
SHRINK = 0.85  # columns that are done are dropped once this fraction or less is left


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
        zeros: zeros the layer shall have; blocks round it down, for N:M it must be what the pattern implies.
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
        return problem.mask(torch.zeros_like(problem.live))
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
            problem.live[rows],
            block=problem.pattern.size if problem.pattern.kind == "block" else 1,
            step=-(-columns // 256) if step is None else step,
            capacity=capacity,
        )
        orders.append(order)
        losses.append(loss)
    # Rows with fewer live weights (pruned before) end earlier: their batch is shorter.
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
    live: Tensor,
    *,
    block: int = 1,
    step: int = 1,
    capacity: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eliminate the live weights of each row, cheapest first; all rows in step.

    Args:
        weight: (rows, columns).
        inverse: (rows, columns, columns), the inverse Hessian of each row. It is worked in: give a tensor of its own.
        live: (rows, columns), weights that may go; a block may go if any of its weights may.
        block: columns that go together.
        step: weights a row loses at once.
        capacity: (rows, columns // M), how many each group of M columns can give; None: all.

    Returns:
        order (rows, steps), the units (column or block) of each row as eliminated, and loss (rows, steps), the increase
        of ``1/2 e^T H e`` by each, infinite where a row had nothing left.

    Raises:
        SingularHessianError: rounding left the downdated inverse without a factor.
    """
    rows, columns = weight.shape
    row = torch.arange(rows, device=weight.device)[:, None]
    G, w, free = inverse, weight.clone(), live.view(rows, -1, block).any(-1)
    place = torch.arange(columns // block, device=weight.device).expand(rows, -1)  # which unit of the start each one is
    if capacity is not None:
        free &= (capacity > 0).repeat_interleave(columns // capacity.shape[1], dim=1)
    left = free.sum(1) if capacity is None else torch.minimum(capacity, free.view(*capacity.shape, -1).sum(-1)).sum(1)
    width = max(1, step // block)  # units a step
    orders, losses = [], []
    while left.any():
        U = G.new_zeros(rows, -(-PANEL // (width * block)) * width * block, w.shape[1])
        D = block_diagonal(G, block)
        for at in range(0, U.shape[1], width * block):
            score = saliency(w, D, free)
            if capacity is not None and width > 1:
                score = within_capacity(score, place, capacity, columns // capacity.shape[1])
            best = score.topk(min(width, int(left.max())), largest=False, sorted=True)
            units, valid = best.indices, best.values.isfinite()
            P = (units[..., None] * block + torch.arange(block, device=units.device)).flatten(1)
            new = torch.baddbmm(G[row, P], U[row, :at, P], U[:, :at], alpha=-1) if at else G[row, P]
            new, y = downdate(new, w, P, valid.repeat_interleave(block, dim=1))
            U[:, at : at + P.shape[1]] = new
            w -= torch.bmm(y[:, None], new)[:, 0]
            per_unit = new.view(rows, P.shape[1], -1, block)
            D -= torch.einsum("rpui,rpuj->ruij", per_unit, per_unit)
            free[row, units] &= ~valid
            orders.append(place.gather(1, units))
            losses.append((y.square().view(*units.shape, block).sum(-1) / 2).masked_fill(~valid, float("inf")))
            if capacity is not None:
                capacity = capacity.scatter_add(1, orders[-1] // (columns // capacity.shape[1]), -valid.to(capacity))
                free &= capacity.gather(1, place // (columns // capacity.shape[1])) > 0
            left -= valid.sum(1)
            if not left.any():
                break
        if left.any():
            G, w, free, place = shrink(G.baddbmm_(U.mT, U, alpha=-1), w, free, place, block)
    return torch.cat(orders, dim=1), torch.cat(losses, dim=1)


def block_diagonal(G: Tensor, block: int) -> Tensor:
    """A copy of the diagonal blocks (rows, units, block, block) of ``G`` (rows, columns, columns)."""
    units = G.shape[1] // block
    return G.view(-1, units, block, units, block).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()


def saliency(w: Tensor, D: Tensor, free: Tensor) -> Tensor:
    """``w_B^T (G_BB)^-1 w_B`` of each unit, (rows, units), infinite where it is not free (docs/theory.md, equation 4).

    Args:
        w: (rows, columns).
        D: (rows, units, block, block), ``G_BB`` of each unit.
        free: (rows, units).

    Raises:
        SingularHessianError: rounding left a unit without a loss.
    """
    if D.shape[-1] == 1:
        score = w.square() / D[..., 0, 0]
        positive = D[..., 0, 0] > 0
    else:
        eye = torch.eye(D.shape[-1], dtype=D.dtype, device=D.device)
        factor, info = torch.linalg.cholesky_ex(torch.where(free[..., None, None], D, eye))
        y = torch.linalg.solve_triangular(factor, w.view(*free.shape, -1, 1), upper=False)
        score = y.square().sum((-2, -1))
        positive = info == 0
    if not ((positive & score.isfinite()) | ~free).all():
        raise SingularHessianError(f"elimination over {w.shape[1]} columns lost its precision; raise `damping`")
    return score.masked_fill(~free, float("inf"))


def within_capacity(score: Tensor, place: Tensor, capacity: Tensor, size: int) -> Tensor:
    """``score`` (rows, units), infinite beyond the ``capacity`` (rows, groups) cheapest of each ``size`` places."""
    whole = score.new_full((len(score), capacity.shape[1] * size), float("inf")).scatter_(1, place, score)
    rank = ranks(whole.view(len(score), -1, size)).flatten(1).gather(1, place)
    return score.masked_fill(rank >= capacity.gather(1, place // size), float("inf"))


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


def shrink(G: Tensor, w: Tensor, free: Tensor, place: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop columns that are not free once they are many. What they hold moves no weight that can still be removed."""
    row = torch.arange(len(w), device=w.device)[:, None]
    count = int(free.sum(1).max())
    if count > SHRINK * free.shape[1]:
        return G, w, free, place
    units = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    columns = (units[..., None] * block + torch.arange(block, device=w.device)).flatten(1)
    G = G[row[..., None], columns[:, :, None], columns[:, None, :]]
    return G, w.gather(1, columns), free.gather(1, units), place.gather(1, units)
