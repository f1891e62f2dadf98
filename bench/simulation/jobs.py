"""What arrives, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mindgw.gateway.ticket import W_IN, W_OUT

#: Ranks of the classes, by name.
RANKS = {"bumped": 0, "high": 1, "normal": 2, "batch": 3, "sheddable": 4}


@dataclass(slots=True)
class Job:
    """One request. The first fields are given, the others are filled in by the run; times in seconds from the beginning."""

    arrival: float
    client: str
    input: int
    output: int
    model: str = "model"
    priority: str = "normal"
    #: Ids of the blocks of the prompt that others may share, from its beginning.
    blocks: Sequence[int] = ()
    #: When a slot was given, the first token came, and the last one did; below 0: never.
    start: float = -1.0
    first: float = -1.0
    end: float = -1.0
    #: Tokens of the prompt that its box remembered.
    cached: int = 0
    #: Wait that was foretold when it joined; below 0: it did not wait.
    eta: float = -1.0
    #: The same without the correction for who passes.
    raw: float = -1.0
    #: When it was last looked at, answer tokens that were seen then, and those that are paid for.
    seen: float = -1.0
    written: int = 0
    paid: int = 0
    #: It was refused at once, or left because its patience was over.
    refused: bool = False
    left: bool = False

    @property
    def units(self) -> float:
        """What it costs in all."""
        return W_IN * self.input + W_OUT * self.output

    @property
    def wait(self) -> float:
        """Seconds until it had a slot; only of those that had one."""
        return self.start - self.arrival


@dataclass(slots=True)
class Workload:
    """Jobs in the order in which they arrive, and what is known of their source."""

    name: str
    jobs: list[Job]
    #: Tokens of a block.
    block: int = 512
    #: Weights of the clients that do not count 1.
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.jobs[-1].arrival - self.jobs[0].arrival if self.jobs else 0.0

    def again(self) -> list[Job]:
        """The jobs, untouched by any run."""
        return [Job(j.arrival, j.client, j.input, j.output, j.model, j.priority, j.blocks) for j in self.jobs]
