"""What solvers take, from the sizes of a layer alone: multiplications, and bytes.

The figures stand for pruning to 90 % zeros and rounding to 4 bits, once each.
"""

from sbc_plugin.core.pruning.hybrid import OBS_WORK, PRESELECT
from sbc_plugin.core.pruning.obs import BATCH_ELEMENTS, EXACT_COLUMNS, PANEL
from sbc_plugin.core.pruning.prune import is_small
from sbc_plugin.core.quantization.scale_search import CHUNK

KEPT = 0.1  # of the weights
COPIES = 4  # of one Hessian that a solver holds: undamped, damped, inverse, factor
CANDIDATES = 160  # copies of the weight that the search of scales holds, as far as they stay below a few CHUNKs
ELIMINATING = 3  # times rows * columns^3: exact OBS, which "auto" takes up to SMALL
SHARING, ROWS = 18, 5  # times columns^3 and rows * columns^2: ADMM and what follows, above
ROUNDING = 7  # times columns^3: GPTQ with the search of scales, and descent


def solver_products(rows: int, columns: int, hessians: int | None = None) -> int:
    """Multiplications and additions that pruning and rounding a layer take.

    Args:
        rows: of the weight.
        columns: of the weight.
        hessians: how many matrices the rows share; None = 1.
    """
    count, cube = hessians or 1, columns**3
    sharing = SHARING * count * cube + ROWS * rows * columns**2
    return ROUNDING * count * cube + (ELIMINATING * rows * cube if is_small(rows, columns) else sharing)


def hessian_memory(columns: int, hessians: int | None = None) -> int:
    """Bytes of a layer's Hessians in float64.

    >>> hessian_memory(1000)
    8000000
    """
    return 8 * (hessians or 1) * columns**2


def solver_memory(rows: int, columns: int) -> int:
    """Bytes that the solvers of a layer hold at most, beside its Hessians.

    Exact OBS holds an inverse Hessian for each row of a batch, and a smaller one while it drops columns; the hybrid
    does so for the weights that ADMM leaves. The search of scales holds many copies of the weight.

    >>> solver_memory(4096, 128) / 1e9 > 1
    True
    """
    if is_small(rows, columns):
        size, itemsize = columns, 8 if columns <= EXACT_COLUMNS else 4
    else:
        reach = rows * (OBS_WORK / rows) ** (1 / 3)
        size, itemsize = round(columns * KEPT / max(PRESELECT, KEPT * rows * columns / reach)), 4
    batch = min(rows, max(1, BATCH_ELEMENTS // max(size, 1) ** 2))
    pruning = itemsize * batch * size * (2 * size + PANEL)
    rounding = 8 * min(CANDIDATES * rows * columns, 8 * CHUNK)
    return COPIES * 8 * columns**2 + max(pruning, rounding)
