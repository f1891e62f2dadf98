"""Who is next: the fair order of the queue, and what stands before a ticket."""

from mindgw.core.fair.ahead import Ahead
from mindgw.core.fair.order import AGING, FANOUT, LEAD, OTHERS, Fair
from mindgw.core.fair.tree import Path, Ticket

__all__ = ["AGING", "FANOUT", "LEAD", "OTHERS", "Ahead", "Fair", "Path", "Ticket"]
