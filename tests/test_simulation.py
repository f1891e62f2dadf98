"""The simulator: that its parts keep their accounts, that files that are no traces are named, and that its promises hold in small."""

import gzip
import json
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import simulate
from bench.simulation import drawing, figures, routing, scenarios, traces, workloads
from bench.simulation.boxes import A10G, A100, Box, Profile
from bench.simulation.jobs import Job, Workload
from bench.simulation.orders import POLICIES
from bench.simulation.traces import BadTrace
from bench.simulation.world import Plan, World
from mindgw.gateway.strategy import STRATEGIES
from tests.house import ROOT

SLOW = Profile("slow", b0=100.0, b1=1.0, b2=0.0, slots=2)


def ran(jobs, boxes=(SLOW,), policy="fair", **plan):
    return World(Workload("test", sorted(jobs, key=lambda job: job.arrival)), Plan(list(boxes), policy, **plan)).run()


# -- the engine that is simulated -----------------------------------------------------------------------------------------


def test_a_request_alone_takes_its_prompt_and_one_step_a_token():
    (job,) = ran([Job(1.0, "a", 200, 11)]).jobs
    assert (job.start, job.first) == (1.0, pytest.approx(1.0 + 0.1 + 0.2))
    assert job.end == pytest.approx(job.first + 10 * 0.1)


def test_a_long_prompt_is_read_in_chunks_and_slows_the_others():
    profile = Profile("chunks", b0=100.0, b1=1.0, b2=0.0, slots=2, chunk=100)
    writer, reader = ran([Job(0.0, "a", 100, 100), Job(1.0, "b", 1000, 1)], [profile]).jobs
    assert reader.end - reader.start == pytest.approx(10 * 0.2)
    assert writer.end - writer.first == pytest.approx(99 * 0.1 + 10 * 0.1)


def test_memory_limits_how_many_run_and_those_who_end_make_room():
    profile = Profile("small", b0=10.0, b1=0.0, b2=0.0, slots=100, pool=1000)
    jobs = ran([Job(0.0, "a", 300, 100) for _ in range(6)], [profile]).jobs
    assert sorted(job.start > 0 for job in jobs) == [False, False, True, True, True, True]


def test_a_request_larger_than_what_is_free_still_has_its_turn_in_an_empty_box():
    box = Box(Profile("small", 10.0, 0.0, 0.0, slots=9, pool=1000), 512)
    assert box.room(Job(0.0, "a", 500, 500))
    assert not box.room(Job(0.0, "a", 501, 500))


def test_models_are_loaded_before_they_answer_and_only_when_one_can_go():
    profile = Profile("one", b0=100.0, b1=0.0, b2=0.0, slots=4, holds=1, load=5.0)
    result = ran([Job(0.0, "a", 1, 11, "x"), Job(1.0, "a", 1, 1, "y"), Job(2.0, "a", 1, 1, "x")], [profile])
    first, other, again = result.jobs
    assert first.first == pytest.approx(5.1)
    assert again.end <= first.end
    assert other.first == pytest.approx(first.end + 5.1)
    assert result.boxes[0].swaps == 2


def test_blocks_of_a_prompt_are_remembered_and_forgotten_from_the_end():
    profile = Profile("caching", b0=1e-6, b1=1.0, b2=0.0, slots=1, cache=3, chunk=1e9)
    box_jobs = [Job(float(10 * n), "a", 30, 1, blocks=blocks) for n, blocks in enumerate([(1, 2, 3), (1, 2, 3), (4,), (1, 2, 3)])]
    result = World(Workload("test", box_jobs, block=10), Plan([profile])).run()
    assert [round((job.first - job.start) * 1000) for job in result.jobs] == [30, 1, 30, 10]
    assert (result.boxes[0].seen, result.boxes[0].hits) == (10, 5)


JOBS = st.lists(
    st.builds(
        Job,
        arrival=st.floats(0, 50),
        client=st.sampled_from(["a", "b", "team/c", "team/d"]),
        input=st.integers(1, 3000),
        output=st.integers(1, 300),
        model=st.sampled_from(["x", "y"]),
        priority=st.sampled_from(["high", "normal", "batch"]),
    ),
    min_size=1,
    max_size=40,
)


@given(JOBS, st.sampled_from(POLICIES), st.sampled_from(STRATEGIES), st.booleans())
def test_everybody_is_served_once_and_nothing_is_lost(jobs, policy, strategy, pooled):
    boxes = [A10G] if pooled else [SLOW, Profile("swapping", 10.0, 0.1, 0.1, slots=3, holds=1, load=2.0)]
    result = ran(jobs, boxes, policy, strategy=strategy)
    assert len(result.jobs) == len(jobs)
    for job in result.jobs:
        assert job.arrival <= job.start <= job.first <= job.end
        assert job.written == job.paid == job.output
    for begin in (job.start for job in result.jobs):
        assert pooled or sum(job.start <= begin < job.end for job in result.jobs) <= result.slots
    fairness, used = figures.fairness(result.jobs, {}), figures.utilisation(result, result.now)
    assert 0 < fairness.least <= fairness.mean <= 1 + 1e-9
    assert 0 <= used <= 1 + 1e-9
    assert figures.errors(result.jobs).median >= 0


def test_a_run_is_the_same_each_time():
    jobs = workloads.mixed(60.0)
    assert World(jobs, Plan([A100])).run().jobs == World(jobs, Plan([A100])).run().jobs


def test_a_full_queue_refuses_at_once_and_patience_ends():
    jobs = ran([Job(0.0, "a", 1, 100) for _ in range(10)], capacity=4, patience=5.0).jobs
    assert [job.refused for job in jobs].count(True) == 4
    assert [job.left for job in jobs].count(True) == 4
    assert [job.end > 0 for job in jobs].count(True) == 2


def test_a_run_that_is_stopped_counts_what_was_written():
    result = ran([Job(0.0, "a", 1, 1000), Job(10.0, "a", 1, 1)], until=10.0)
    assert 95 < result.jobs[0].written < 105
    assert figures.throughput(result.jobs, 10.0) == pytest.approx(2 * 100 / 10, rel=0.1)
    assert figures.utilisation(result, 10.0) == pytest.approx(0.5, abs=0.01)


# -- figures ------------------------------------------------------------------------------------------------------------


def test_jains_index_is_one_for_equals_and_a_part_for_one_who_has_all():
    assert figures.jain([5.0, 5.0, 5.0]) == 1.0
    assert figures.jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert figures.jain([0.0, 0.0]) == 1.0


def test_an_error_is_put_into_proportion_with_the_wait_but_not_with_a_short_one():
    long, short = Job(0.0, "a", 1, 1, start=100.0, eta=150.0, raw=100.0), Job(0.0, "a", 1, 1, start=1.0, eta=2.0, raw=1.0)
    found = figures.errors([long, short, Job(0.0, "a", 1, 1, start=0.0)])
    assert (found.forecasts, found.median, found.p90, found.plain_p90) == (2, 0.5, 0.5, 0.0)
    assert figures.errors([short]).median == pytest.approx(0.2)


# -- promises, in small ---------------------------------------------------------------------------------------------------


def missed(found):
    return [(target.name, target.value) for target in found.targets if not target.met]


@pytest.mark.parametrize(
    "scenario",
    [
        lambda: scenarios.s1_vtc(["overload-multi"]),
        lambda: scenarios.s4_mixed(300.0),
        lambda: scenarios.backlog(1, 8, mixes=False),
        lambda: scenarios.greedy(4, 4, 0.6, 150.0),
        lambda: scenarios.overload(90.0),
    ],
    ids=["service gap", "chat beside batch", "Jain's index", "greedy tenant", "overload"],
)
def test_the_fair_order_keeps_its_promises(scenario):
    found = scenario()
    assert found.targets
    assert missed(found) == []


def test_the_score_keeps_its_promises_and_prints_them(capsys):
    assert simulate.main(["--quick", "--only", "routing", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "64 shared prefixes, unlike boxes" in printed
    assert printed.count("score / round robin") == 9


def test_traces_are_routed_by_what_they_hold():
    jobs = [Job(float(n), "a", 600, 20, blocks=(n % 3,)) for n in range(30)]
    plain = [Job(float(n), "a", 600, 20) for n in range(30)]
    found = {workload.name: bound for workload, _, bound in routing.pairs(True, [Workload("with", jobs), Workload("without", plain)])}
    assert found["with, unlike boxes"] == routing.SHARED
    assert found["without, unlike boxes"] == routing.UNLIKE
    assert found["without, alike boxes"] == found["with, alike boxes"] == routing.ALIKE


def test_waits_are_foretold_for_a_trace_with_clients():
    found = scenarios.trace(workloads.arena(), [1.0])
    assert missed(found) == []
    fair = found.rows[0]
    assert fair.eta.forecasts > 500
    assert fair.eta.p90 < fair.eta.plain_p90


def test_light_clients_do_not_pay_for_heavy_ones():
    waits = {row.policy: row.groups["21 light clients"].mean for row in scenarios.s2_arena().rows}
    assert waits["fair"] < 5 < 50 < waits["fifo"]


# -- traces ---------------------------------------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
BURST = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,7,1,GPT-4,10,0,10,API log
6,8,1,GPT-4,11,12,23,API log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 512, "output_length": 6, "hash_ids": [0, 1]}

{"timestamp": 3000, "input_length": 9, "output_length": 2}
"""
ARENA = "req_time_s,client,prompt_len,output_len\n0.5,13,13,199\n0.75,2,36,137\n"
OWN = "t,client,input,output,model\n9,b,3,4,small\n2,team/a,1,2,large\n"


def loaded(folder, text, name="trace.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return traces.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE, [(0.0, "client", 374, 44, "model"), (pytest.approx(4.314579), "client", 396, 109, "model")]),
        (
            AZURE.replace("0,374", "0+00:00,374"),
            [(0.0, "client", 374, 44, "model"), (pytest.approx(4.314579), "client", 396, 109, "model")],
        ),
        (BURST, [(0.0, "8", 11, 12, "GPT-4")]),
        (MOONCAKE, [(0.0, "client", 512, 6, "model"), (3.0, "client", 9, 2, "model")]),
        (ARENA, [(0.0, "13", 13, 199, "model"), (0.25, "2", 36, 137, "model")]),
        (OWN, [(0.0, "team/a", 1, 2, "large"), (7.0, "b", 3, 4, "small")]),
    ],
    ids=["Azure", "Azure with a zone", "BurstGPT", "Mooncake", "Arena", "own"],
)
def test_every_published_format_is_read(tmp_path, text, expected):
    for content in (text, gzip.compress(text.encode()), "\ufeff" + text):
        jobs = loaded(tmp_path, content).jobs
        assert [(job.arrival, job.client, job.input, job.output, job.model) for job in jobs] == expected


def test_shared_blocks_are_kept_and_coarse_stamps_spread(tmp_path):
    assert loaded(tmp_path, MOONCAKE).jobs[0].blocks == [0, 1]
    line = '{{"timestamp": {}, "input_length": 5, "output_length": 2}}\n'
    jobs = loaded(tmp_path, "".join(line.format(3000 * (n // 10)) for n in range(40))).jobs
    assert len({job.arrival for job in jobs}) == 40
    assert jobs[-1].arrival < 12


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no known trace"),
        ("a,b,c\n1,2,3\n", "no known trace"),
        ("t,client,input,output,model\n", "no requests"),
        ("t,client,input,output,model\n1,a,0,5,m\n", "no requests"),
        ("t,client,input,output,model\n1,a,5\n", ":2:"),
        ("t,client,input,output,model\n1,a,5,6,m\nsoon,a,5,6,m\n", ":3:"),
        ("t,client,input,output,model\nnan,a,5,6,m\n", "time is nan"),
        ("t,client,input,output,model\n1,a,-5,6,m\n", "cannot be"),
        ("t,client,input,output,model\n1,a,5,99999999999,m\n", "cannot be"),
        ('t,client,input,output,model\n1,"a,5,6,m\n', "unexpected end"),
        (AZURE.replace("2023-11-16 18:15:50", "yesterday"), ":3:"),
        (AZURE.replace("396", "many"), ":3:"),
        (BURST.replace("11,12", "11,"), ":3:"),
        (ARENA.replace("0.75", ""), ":3:"),
        ('{"timestamp": 0, "input_length": 5}\n', ":1:"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 6}\n{"timestamp": 1,\n', ":2:"),
        ('{"timestamp": 0, "input_length": "5", "output_length": 6}\n', ":1:"),
        (b"\x1f\x8b\x08garbage", "spoilt"),
        (gzip.compress(AZURE.encode(), mtime=0)[:-10], "spoilt"),
        (b"\xff\xfe\x00t", "not text"),
    ],
)
def test_what_is_no_trace_is_named_with_its_line(tmp_path, text, problem):
    with pytest.raises(BadTrace, match="trace.csv") as caught:
        loaded(tmp_path, text)
    assert problem in str(caught.value)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from([AZURE, BURST, MOONCAKE, ARENA, OWN]).flatmap(
            lambda text: st.tuples(st.integers(0, len(text)), st.text(max_size=5)).map(
                lambda cut: (text[: cut[0]] + cut[1] + text[cut[0] + 1 :]).encode()
            )
        ),
    )
)
def test_no_file_does_worse_than_being_no_trace(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    try:
        jobs = traces.load(path).jobs
    except BadTrace:
        return
    assert jobs[0].arrival == 0.0


# -- the command ----------------------------------------------------------------------------------------------------------


def test_the_quick_run_prints_what_it_found_and_draws_it(tmp_path):
    trace, plot = tmp_path / "mine.csv", tmp_path / "out.svg"
    trace.write_text("t,client,input,output,model\n" + "".join(f"{n / 4},c{n % 3},{50 + n},{20 + n % 50},m\n" for n in range(200)))
    words = ["--quick", "--json", "--check", "--only", "S4", "--only", "traces", "--load", "1", "--trace", str(trace), "--plot", str(plot)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.simulate", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in {0, 1}, done.stderr
    assert "S4: " in done.stderr
    printed = json.loads(done.stdout)
    assert {row["scenario"] for row in printed["rows"]} >= {"S4 chat and batch", "mine, load 1"}
    assert done.returncode == (0 if all(target["met"] for target in printed["targets"]) else 1)
    drawn = ET.fromstring(plot.read_text())
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == len(POLICIES)


def test_tables_show_every_promise_and_the_cost_of_the_kernel(capsys):
    assert simulate.main(["--quick", "--only", "backlog", "--only", "kernel"]) == 0
    printed = capsys.readouterr().out
    assert "Jain's index, least of all 60 s" in printed
    assert "enqueue + dispatch, us" in printed


def test_bad_words_and_bad_files_are_told_in_one_line(tmp_path, capsys):
    for words in (["--only", "S99"], ["--load", "0"], ["--load", "many"], ["--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            simulate.main(words)
        assert caught.value.code == 2
    capsys.readouterr()
    assert simulate.main(["--trace", str(tmp_path / "absent.csv")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.csv'}: No such file or directory\n"
    assert simulate.main(["--only", "traces", "--plot", str(tmp_path / "absent" / "out.svg")]) == 1
    assert "absent" in capsys.readouterr().err


def test_a_picture_escapes_its_words_and_stands_without_curves():
    drawn = drawing.picture({"a < b & c": {"<x>": [(0.0, 0.0), (1.0, 2.0)]}, "nothing": {}, "flat": {"y": [(0.0, 0.0)]}})
    assert ET.fromstring(drawn).tag.endswith("svg")
    assert "a &lt; b &amp; c" in drawn
