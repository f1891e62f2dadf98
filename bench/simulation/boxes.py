"""What a box does with the requests that it was given: steps of an engine that batches, or swaps models.

    step = b0 + b1 x prompt tokens in the step + b2 x answers that are written + b3 x tokens that these have in memory

Every step adds a token to every answer; one prompt at a time is read, in chunks. Between two changes all steps take the same time, so
whole stretches are skipped at once: an answer counts for the tokens that it has in memory half-way. The constants are published fits
(docs/explanation/fairness.md names them).
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, inf

from bench.simulation.jobs import Job


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of box. Milliseconds; a step takes more than none."""

    name: str
    b0: float
    b1: float
    b2: float
    slots: int
    #: Prompt tokens that one step reads at most.
    chunk: float = 2048.0
    #: Tokens for which it has memory: input and output of a request are reserved; 0: only the slots count.
    pool: int = 0
    #: Blocks of prompts that it remembers.
    cache: int = 0
    #: Models that fit at once, and seconds that loading another takes.
    holds: int = 1_000_000
    load: float = 0.0
    b3: float = 0.0


A10G = Profile("A10G, Llama-2-7B, S-LoRA", 22.0, 0.218, 0.9, slots=1000, chunk=inf, pool=10_000)
A100 = Profile("A100-80, 8B", 16.4, 0.0478, 0.0182, slots=8)
H100X2 = Profile("2x H100, 70B W8A8", 10.9, 0.0634, 0.0166, slots=37, cache=600)
RTX4090 = Profile("RTX 4090, 8B Q4", 7.7, 0.145, 0.07, slots=4, chunk=512, holds=1, load=4.0)
CPU = Profile("CPU, 8B Q4", 36.0, 5.0, 18.0, slots=1, chunk=512, holds=1, load=8.0)


class Box:
    """One engine and the requests that it works on. The caller moves its time on with `advance` before it changes anything."""

    def __init__(self, profile: Profile, block: int) -> None:
        self.profile = profile
        self._block = block
        self.now = 0.0
        #: Steps done; parts of a step count, as a change in the middle of one is not rounded.
        self.steps = 0.0
        #: Answers that are written: (step of the last token, order, job).
        self._writing: list[tuple[float, int, Job]] = []
        #: Prompts that wait to be read, and the one that is, with its uncached tokens; `_read` is the step at which it is read.
        self._prompts: deque[tuple[Job, int]] = deque()
        self._read = inf
        self._tokens = 0.0
        #: Those whose model is not loaded, oldest first; what is loaded, least used first; jobs at work by model.
        self._cold: deque[Job] = deque()
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self._loading: tuple[float, str] | None = None
        self._order = 0
        #: Tokens that the answers have in memory half-way.
        self._held = 0.0
        #: Step of the first token of each answer that is written.
        self._since: dict[int, float] = {}
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._jobs: dict[int, Job] = {}
        #: Jobs whose first token came since somebody asked.
        # bounded: by the slots
        self.spoke: list[Job] = []
        #: Blocks seen and found, models loaded.
        self.seen = self.hits = self.swaps = 0
        #: Changes whenever the next event does.
        self.version = 0

    def room(self, job: Job) -> bool:
        """Whether its memory lasts for the job and all others until they end: those with the shortest rest end first. LightLLM's rule."""
        if not self.profile.pool:
            return True
        rests = [(job.output, job.input)]
        for each in self._jobs.values():
            written = self.written(each)
            rests.append((each.output - written, each.input + written))
        rests.sort(reverse=True)
        held = 0
        for place, (rest, has) in enumerate(rests, start=1):
            held += has
            if rest * place + held > self.profile.pool:
                return False
        return True

    def advance(self, now: float) -> None:
        """Moves on to `now`, which is not beyond the next event."""
        self.steps += (now - self.now) / self._step()
        self.now = now

    def add(self, job: Job) -> None:
        """Begins with a job."""
        self.version += 1
        self._jobs[id(job)] = job
        if job.model in self._loaded:
            self._begin(job)
            return
        self._cold.append(job)
        self._load()

    def next(self) -> float:
        """When something happens here; infinity when nothing will."""
        until = min(self._read, self._writing[0][0] if self._writing else inf)
        event = self.now + max(0.0, until - self.steps) * self._step() if until < inf else inf
        return min(event, self._loading[0]) if self._loading else event

    def happen(self) -> list[Job]:
        """Does what is due now; the jobs that ended."""
        self.version += 1
        if self._loading and self._loading[0] <= self.now:
            self._loaded[self._loading[1]] = 0
            self._loading = None
            self._warm()
        due = self.steps + 1e-6
        if self._read <= due:
            self._speak(self._prompts.popleft()[0])
            self._next_prompt()
        ended = []
        while self._writing and self._writing[0][0] <= due:
            ended.append(self._end(heappop(self._writing)[2]))
        return ended

    @property
    def loaded(self) -> tuple[str, ...]:
        """Models that can answer at once."""
        return tuple(self._loaded)

    def written(self, job: Job) -> int:
        """Tokens of an answer so far."""
        since = self._since.get(id(job))
        return 0 if since is None else min(job.output, int(self.steps - since + 1e-6) + 1)

    def _step(self) -> float:
        """Seconds that a step takes now."""
        return (
            self.profile.b0 + self.profile.b1 * self._tokens + self.profile.b2 * len(self._writing) + self.profile.b3 * self._held
        ) / 1000

    def _begin(self, job: Job) -> None:
        self._loaded[job.model] += 1
        self._loaded.move_to_end(job.model)
        job.cached = self._cached(job)
        self._prompts.append((job, job.input - job.cached))
        if len(self._prompts) == 1:
            self._next_prompt()

    def _next_prompt(self) -> None:
        if not self._prompts:
            self._read, self._tokens = inf, 0.0
            return
        tokens = self._prompts[0][1]
        steps = max(1, ceil(tokens / self.profile.chunk))
        self._read, self._tokens = self.steps + steps, tokens / steps

    def _speak(self, job: Job) -> None:
        job.first = self.now
        self.spoke.append(job)
        self._order += 1
        self._held += job.input + job.output / 2
        self._since[id(job)] = self.steps
        heappush(self._writing, (self.steps + job.output - 1, self._order, job))

    def _end(self, job: Job) -> Job:
        job.end = self.now
        del self._since[id(job)]
        self._held -= job.input + job.output / 2
        del self._jobs[id(job)]
        self._loaded[job.model] -= 1
        self._load()
        return job

    def _load(self) -> None:
        """Begins to load what the oldest cold job needs, as soon as a model that nobody uses can go."""
        if self._loading or not self._cold:
            return
        if len(self._loaded) >= self.profile.holds:
            idle = next((name for name, used in self._loaded.items() if not used), None)
            if idle is None:
                return
            del self._loaded[idle]
        self.swaps += 1
        self._loading = (self.now + self.profile.load, self._cold[0].model)

    def _warm(self) -> None:
        ready = [job for job in self._cold if job.model in self._loaded]
        self._cold = deque(job for job in self._cold if job.model not in self._loaded)
        for job in ready:
            self._begin(job)
        self._load()

    def _cached(self, job: Job) -> int:
        """Tokens of the prompt that are remembered; one is read in any case."""
        if not self.profile.cache or not job.blocks:
            return 0
        found = 0
        while found < len(job.blocks) and job.blocks[found] in self._cache:
            found += 1
        self.seen += len(job.blocks)
        self.hits += found
        for block in reversed(job.blocks):  # the beginning of a prompt is the last to be forgotten
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self.profile.cache:
            self._cache.popitem(last=False)
        return min(job.input - 1, found * self._block)
