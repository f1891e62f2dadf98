"""Workloads that are made: those of the VTC paper exactly, others with published statistics. Every one is the same each time.

Sources: Sheng et al., OSDI 2024 and its repository (VTC suites); Azure LLM inference 2023 (code, conversation); ServeGen (shares of
clients, day of deepseek-r1); SGLang's generated shared prefixes; llm-d's 150 x 5; Mooncake (sessions). What is ours is said with each.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import exp, pi, sin
from statistics import NormalDist

from bench.simulation.jobs import Job, Workload

Lengths = Callable[[random.Random], int]


def made(name: str, *parts: Iterable[Job], block: int = 512, weights: dict[str, float] | None = None) -> Workload:
    """Parts in the order of arrival."""
    return Workload(name, sorted((job for part in parts for job in part), key=lambda job: job.arrival), block, weights or {})


# -- arrivals ----------------------------------------------------------------------------------------------------------


def even(client: str, rate: float, begin: float, end: float, sizes: tuple[int, int] = (256, 256)) -> list[Job]:
    """One every 1/rate seconds, with a phase that its name decides."""
    phase = random.Random(client).random()
    return [Job(begin + (number + phase) / rate, client, *sizes) for number in range(int((end - begin) * rate))]


def on_off(client: str, rate: float, end: float, period: float = 60.0) -> list[Job]:
    """Evenly for a period, nothing for a period, and so on."""
    return [job for at in range(0, int(end), int(2 * period)) for job in even(client, rate, at, at + period)]


def rising(client: str, begin: float, end: float, seconds: float) -> list[Job]:
    """A rate that grows from `begin` to `end` linearly."""
    found, at = [], 0.0
    while (at := at + 1 / (begin + (end - begin) * at / seconds)) < seconds:
        found.append(Job(at, client, 256, 256))
    return found


def poisson(client: str, rate: float, seconds: float, sizes: tuple[Lengths, Lengths], dice: random.Random) -> list[Job]:
    """Independent of each other."""
    found, at = [], 0.0
    while (at := at + dice.expovariate(rate)) < seconds:
        found.append(Job(at, client, sizes[0](dice), sizes[1](dice)))
    return found


def bursts(rate: float, seconds: float, spread: tuple[float, float, float], dice: random.Random) -> list[float]:
    """Times whose rate is changed by gamma factors that are drawn every minute, every 10 s and every second, with these variances."""

    def factor(variance: float) -> float:
        return dice.gammavariate(1 / variance, variance) if variance > 0 else 1.0

    found = []
    minute = ten = 1.0
    for second in range(int(seconds)):
        minute = factor(spread[0]) if second % 60 == 0 else minute
        ten = factor(spread[1]) if second % 10 == 0 else ten
        expected, at = rate * minute * ten * factor(spread[2]), 0.0
        while expected > 0 and (at := at + dice.expovariate(expected)) < 1:
            found.append(second + at)
    return found


# -- lengths and clients -----------------------------------------------------------------------------------------------


def always(tokens: int) -> Lengths:
    return lambda dice: tokens


def lognormal(median: float, p90: float, most: int) -> Lengths:
    """With this median and 90th percentile."""
    sigma = NormalDist().inv_cdf(0.9)
    return lambda dice: max(1, min(most, round(median * (p90 / median) ** (dice.gauss() / sigma))))


#: Of Azure's conversations and code completions, and of the Arena: fits to median and 90th percentile.
CONVERSATION = lognormal(1020, 2735, 14050), lognormal(129, 424, 1000)
CODE = lognormal(1469, 5194, 7437), lognormal(13, 55, 1899)
ARENA = lognormal(40, 432, 1021), lognormal(211, 513, 977)
#: Arrivals in a second, and the variances that give the published dispersion of counts over 1, 10 and 60 s.
CONVERSATION_BURSTS = 5.53, (0.055, 0.01, 0.015)
CODE_BURSTS = 2.57, (0.724, 1.027, 0.646)


def shares() -> list[float]:
    """Of 73 clients, by ServeGen's day of deepseek-r1: the first has 29 % of all, three have 43 %, the others are lognormal around a
    median of 0.36 %."""
    others = [exp(1.28 * NormalDist().inv_cdf((number + 0.5) / 70)) for number in range(70)]
    return [0.29, 0.07, 0.07, *sorted((0.57 * each / sum(others) for each in others), reverse=True)]


def skew(jobs: Iterable[Job], seed: int = 1) -> None:
    """Gives jobs to clients with those shares. Synthetic: that a client comes in runs (every second request is of one of the last
    eight) is ours."""
    dice, parts = random.Random(seed), list(accumulate(shares()))
    names = [f"client-{number:02d}" for number in range(len(parts))]
    recent = names[:1]
    for job in jobs:
        job.client = dice.choice(recent) if dice.random() < 0.5 else dice.choices(names, cum_weights=parts)[0]
        recent = [*recent, job.client][-8:]


# -- workloads ---------------------------------------------------------------------------------------------------------


def vtc() -> dict[str, Workload]:
    """The suites of the VTC paper: 256 tokens in, 256 out, unless they are named otherwise."""
    dice = random.Random(42)
    short = (always(64), always(64)), (always(256), always(256))
    return {
        "overload": made("overload", even("light", 1.5, 0, 360), even("heavy", 3, 0, 360)),
        "overload-multi": made("overload-multi", *(even(f"c{n}", 0.4 if n < 3 else 0.6, 0, 360) for n in range(8))),
        "on_off_less": made("on_off_less", on_off("light", 0.5, 600), even("heavy", 2, 0, 600)),
        "proportional": made("proportional", *(even(name, rate, 0, 600) for name, rate in (("c1", 0.25), ("c2", 0.5), ("heavy", 1.5)))),
        "increase": made("increase", even("light", 0.5, 0, 600), rising("heavy", 0.2, 2, 600)),
        "short_long": made("short_long", poisson("short", 8, 600, short[0], dice), poisson("long", 1.5, 600, short[1], dice)),
        "dist_shift": made(
            "dist_shift",
            on_off("light", 0.5, 300),
            even("light", 1, 300, 600),
            even("light", 0.5, 600, 900),
            even("heavy", 2, 0, 300),
            even("heavy", 1, 300, 600),
            even("heavy", 1.5, 600, 900),
        ),
        "weighted": made(
            "weighted", *(even(f"w{n}", 0.4 * n, 0, 360) for n in (1, 2, 3, 4)), weights={f"w{n}": float(n) for n in (1, 2, 3, 4)}
        ),
    }


def arena() -> Workload:
    """27 clients with the Arena's counts of requests in 600 s, each Poisson, with its median lengths."""
    counts = [296, 262, 199, 120, 67, 66, 56, 46, 44, 43, 40, *(round(34 - 2.1 * n) for n in range(16))]
    dice = random.Random(2)
    return made("arena", *(poisson(f"c{n:02d}", count / 600, 600, ARENA, dice) for n, count in enumerate(counts)))


def code(seconds: float) -> Workload:
    """Azure's code completions: bursts of up to hundreds in a minute. Clients are ServeGen's: synthetic."""
    dice = random.Random(3)
    jobs = [Job(at, "", CODE[0](dice), CODE[1](dice)) for at in bursts(CODE_BURSTS[0], seconds, CODE_BURSTS[1], dice)]
    skew(jobs)
    return made("code", jobs)


def mixed(seconds: float) -> Workload:
    """Azure's conversations of three teams (58, 28, 14 %), normal priority, and from the second quarter on a flood of batch work."""
    dice = random.Random(4)
    jobs = [
        Job(at, dice.choices(("a/chat", "b/chat", "c/chat"), (58, 28, 14))[0], CONVERSATION[0](dice), CONVERSATION[1](dice))
        for at in bursts(CONVERSATION_BURSTS[0] / 2, seconds, CONVERSATION_BURSTS[1], dice)
    ]
    flood = [
        Job(seconds / 4 + dice.random(), "b/nightly", CONVERSATION[0](dice), CONVERSATION[1](dice), priority="batch")
        for _ in range(int(seconds * 2))
    ]
    return made("mixed", jobs, flood)


def conversations(seconds: float, seed: int = 12) -> Workload:
    """Azure's conversations at twice their rate, of one client."""
    dice = random.Random(seed)
    times = bursts(2 * CONVERSATION_BURSTS[0], seconds, CONVERSATION_BURSTS[1], dice)
    return made("chat", [Job(at, "client", CONVERSATION[0](dice), CONVERSATION[1](dice)) for at in times])


def instructed(seconds: float) -> Workload:
    """SGLang's shared prefixes as they come in a day, not all at once: 64 system prompts of 2048 tokens, Poisson, questions and answers of
    any length."""
    dice, sizes = random.Random(13), (lognormal(128, 400, 2000), lognormal(200, 500, 1000))
    jobs = poisson("client", 10.0, seconds, sizes, dice)
    for job in jobs:
        group = dice.randrange(64)
        job.blocks, job.input = range(group * 4, group * 4 + 4), 2048 + job.input
    return Workload("instructed", jobs)


def greedy(light: int, rate: float, seconds: float, times: float) -> Workload:
    """So many tenants at `rate`, and one that sends `times` as much; all with the same mix of lengths."""
    dice = random.Random(5)
    others = (poisson(f"tenant-{n}", rate, seconds, CONVERSATION, dice) for n in range(light))
    return made("greedy", *others, poisson("greedy", rate * times, seconds, CONVERSATION, dice) if times else [])


def backlog(clients: int, each: int, mixed: bool) -> Workload:
    """All there from the beginning, in any order: conversations; or every client with another mix of lengths, from short questions to
    long prompts."""
    dice = random.Random(6)
    mixes = [CONVERSATION, CODE, ARENA, (always(64), always(512)), (always(4000), always(32)), (lognormal(200, 800, 4000), always(256))]
    jobs = []
    for number in range(clients):
        prompt, answer = mixes[number % len(mixes) if mixed else 0]
        jobs += [Job(0.0, f"c{number}", prompt(dice), answer(dice)) for _ in range(each)]
    dice.shuffle(jobs)
    return Workload("backlog", jobs)


def prefixes() -> Workload:
    """SGLang's: 64 groups of 16 prompts, 2048 tokens of system prompt, a question of 128, 256 tokens out; all at once, shuffled."""
    jobs = [Job(0.0, f"g{n:02d}", 2176, 256, blocks=(n,)) for n in range(64) for _ in range(16)]
    random.Random(7).shuffle(jobs)
    return Workload("prefixes", jobs, 2048)


def questions(seconds: float, begin: float = 3.0, end: float = 60.0) -> Workload:
    """llm-d's: 150 groups of 5 users, 6000 tokens of prefix, a question of 1200, 1000 tokens out, Poisson with a growing rate. A prefix is
    remembered in blocks of 512."""
    dice, jobs, at = random.Random(8), [], 0.0
    while (at := at + dice.expovariate(begin + (end - begin) * at / seconds)) < seconds:
        group = dice.randrange(150)
        jobs.append(Job(at, f"g{group:03d}/u{dice.randrange(5)}", 7200, 1000, blocks=range(group * 12, group * 12 + 11)))
    return made("questions", jobs)


def sessions(count: int, seconds: float) -> Workload:
    """Conversations that grow turn by turn, all with one common first block: Mooncake's sharing in outline; 1 to 6 turns are ours."""
    dice, jobs, block = random.Random(9), [], 1
    for session in range(count):
        at, context = dice.uniform(0, seconds), [0]
        for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
            new = max(1, round(lognormal(4000, 20000, 60000)(dice) / 512))
            context = [*context, *range(block, block + new)]
            block += new
            jobs.append(Job(at, f"s{session:04d}", 512 * len(context), lognormal(350, 597, 2000)(dice), blocks=tuple(context)))
            at += dice.expovariate(1 / 60)
    return made("sessions", jobs)


def models(seconds: float, rate: float) -> Workload:
    """Three models that are asked for 60, 30 and 10 times of a hundred."""
    dice = random.Random(10)
    jobs = poisson("client", rate, seconds, CONVERSATION, dice)
    for job in jobs:
        job.model = dice.choices(("small", "code", "other"), (60, 30, 10))[0]
        job.client = f"user-{dice.randrange(12)}"
    return made("models", jobs)


def day(seconds: float, rate: float) -> Workload:
    """ServeGen's day of deepseek-r1, drawn together into so many seconds: from a quarter of the mean rate to 2.66 times as much. The sine
    is ours; lengths follow the clients' percentiles."""
    dice = random.Random(11)
    sizes = lognormal(519, 4673, 30000), lognormal(729, 1425, 8000)
    jobs, at = [], 0.0
    while (at := at + dice.expovariate(rate * 2.66)) < seconds:
        height = max(0.27, 0.9 + 1.2 * sin(2 * pi * at / seconds - pi / 2)) + 0.3 * (abs(at / seconds - 0.6) < 0.05)
        if dice.random() < min(1.0, height / 2.66):
            jobs.append(Job(at, "", sizes[0](dice), sizes[1](dice)))
    skew(jobs)
    return made("day", jobs)


def at_load(workload: Workload, capacity: Callable[[Workload], float], load: float) -> Workload:
    """The same requests, with their times stretched so that they ask for this part of what the boxes can do; `capacity`: seconds that
    the boxes take for all of them."""
    factor = capacity(workload) / (max(workload.span, 1e-9) * load)
    jobs = workload.again()
    for job in jobs:
        job.arrival *= factor
    return Workload(workload.name, jobs, workload.block, workload.weights)


def busiest(jobs: Sequence[Job]) -> list[str]:
    """Clients, the one with most requests first."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.client] = counts.get(job.client, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))
