"""Whose turn it is: in a branch, and between picks of several lines."""

from mindgw.core.fair.tree import Branch, Ticket


def pick(branch: Branch) -> Ticket:
    """The ticket whose turn it is in a branch that is not empty."""
    while (below := branch.top() if not _is_leaf(branch) else None) is not None:
        branch = below
    return branch.head()


def _is_leaf(branch: Branch) -> bool:
    return isinstance(branch.heap[0][2], Ticket)


def before(one: tuple[float, int, Ticket], other: tuple[float, int, Ticket]) -> bool:
    """Whether the first of two picks of different lines goes first: the later band, the higher class, the smaller counter where their
    flows part, the older ticket."""
    if one[:2] != other[:2]:
        return (-one[0], one[1]) < (-other[0], other[1])
    mine, theirs = _ancestry(one[2]), _ancestry(other[2])
    for here, there in zip(mine, theirs, strict=True):
        if here.flow is not there.flow:
            return (here.key(), one[2].number) < (there.key(), other[2].number)
    return one[2].number < other[2].number


def _ancestry(ticket: Ticket) -> list[Branch]:
    out: list[Branch] = []
    branch = ticket.branch
    while branch is not None:
        out.append(branch)
        branch = branch.parent
    return out[::-1]
