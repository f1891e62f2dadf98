"""Whose turn it is: in a branch, and between picks of several lines."""

from math import inf

from mindgw.core.fair.tree import Band, Branch, Line, Ticket


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


def band_of(line: Line, aging: tuple[float, ...]) -> tuple[float, Band] | None:
    """The band that waited for too much work, else the first one; with the units that it is late by, at least 0. Whoever was put before
    all others is later than anybody."""
    if line.bands[0].root.waiting and aging[0] == inf:
        return inf, line.bands[0]
    first: Band | None = None
    latest: tuple[float, Band] | None = None
    for band in line.bands:
        if band.root.waiting == 0:
            continue
        first = first or band
        late = line.work - band.mark - aging[band.rank]
        if late > 0 and (latest is None or late > latest[0]):
            latest = (late, band)
    return latest or ((0.0, first) if first is not None else None)
