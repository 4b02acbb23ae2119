"""How many tokens a mixture of experts takes at once if the host does not know the routed experts. Needs no torch."""

# With up to this many tokens a GEMM takes no longer than reading the matrix, so computing with every expert costs no
# more than reading a layer's experts once.
MOST_ROWS = 128
WORKSPACE_BYTES = 256 << 20
# Matrices are gathered for at most a fourth as many choices as there are experts: copying them takes three times as
# long as reading them in place.
GATHERED_SHARE = 4


def rows_at_once(row_bytes: int) -> int:
    """How many tokens every expert computes at once; a token takes `row_bytes` over all experts."""
    return max(1, min(MOST_ROWS, WORKSPACE_BYTES // row_bytes))


def row_bytes(experts: int, hidden_size: int, expert_bytes: int, itemsize: int) -> int:
    """Memory of one token for all experts of a layer, whose three matrices have `expert_bytes`.

    Inputs and outputs, gate and up side by side, their product, and one temporary value for each.
    """
    return 2 * experts * hidden_size * itemsize + 4 * expert_bytes // (3 * hidden_size)


def workspace_bytes(experts: int, hidden_size: int, expert_bytes: int, itemsize: int) -> int:
    """The most device memory that the experts of one layer need beside other activations."""
    each = row_bytes(experts, hidden_size, expert_bytes, itemsize)
    return max(rows_at_once(each) * each, min(WORKSPACE_BYTES, expert_bytes // GATHERED_SHARE))
