"""How much of a mixture of experts is computed at once where no host knows which experts are hit. Needs no torch."""

# Up to so many rows a GPU multiplies by a matrix in the time of reading it, so that computing with every expert costs
# no more than reading those of a layer once.
MOST_ROWS = 128
WORKSPACE_BYTES = 256 << 20
# Matrices are gathered for up to a fourth of as many choices as there are experts: to copy them takes three times as
# long as to read them in place.
GATHERED_SHARE = 4


def rows_at_once(row_bytes: int) -> int:
    """How many rows every expert computes with at once, of `row_bytes` each over all experts."""
    return max(1, min(MOST_ROWS, WORKSPACE_BYTES // row_bytes))


def row_bytes(experts: int, hidden_size: int, expert_bytes: int, itemsize: int) -> int:
    """Of one row with all experts of a layer, whose three matrices have `expert_bytes`.

    Rows before and after, gate and up side by side, what comes of them, and one value more for each while it is made.
    """
    return 2 * experts * hidden_size * itemsize + 4 * expert_bytes // (3 * hidden_size)


def workspace_bytes(experts: int, hidden_size: int, expert_bytes: int, itemsize: int) -> int:
    """Most device memory that computing with the experts of one layer takes beside other activations."""
    each = row_bytes(experts, hidden_size, expert_bytes, itemsize)
    return max(rows_at_once(each) * each, min(WORKSPACE_BYTES, expert_bytes // GATHERED_SHARE))
