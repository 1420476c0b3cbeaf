"""When the kill harness kills: stages that no kill has met come first, and a short job is met as it starts."""

import random
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace

import kills
from kills import Attempt, Job, Tally, wait_for_the_moment

NOW = datetime(2026, 1, 1)
LATER = NOW + timedelta(seconds=1)


class Scripted:
    """Output that tells of one more state of the run each time that it is looked at."""

    def __init__(self, *states):
        self.states, self.place = states, -1

    def jobs(self):
        self.place = min(self.place + 1, len(self.states) - 1)
        return dict(enumerate(self.states[self.place]))


def job(rule, finished=None):
    return Job(rule, [f"{rule}.out"], NOW, finished)


def moment(states, met, known, lasted=1.0):
    """Which state the run was in when it was to be killed."""
    output = Scripted(*states)
    tally = Tally(met=Counter(met))
    reference = SimpleNamespace(
        unmet=lambda tally: {rule for rule in known if not tally.met[rule]}, lasted=lambda rule: [lasted]
    )
    attempt = Attempt(SimpleNamespace(poll=lambda: None), output, "mark")
    wait_for_the_moment(attempt, reference, random.Random(1), tally)  # whose first draw is no kill before any job
    return output.place


def test_a_stage_that_no_kill_has_met_is_waited_for():
    long, short = job("long"), job("short")
    others = [job("long", LATER), job("long", LATER), job("long", LATER)]
    states = [[long], [*others, long], [*others, long], [*others, long, short], [*others, long, job("short", LATER)]]
    assert moment(states, met={"long": 9}, known={"long", "short"}) == 3


def test_a_job_that_writes_nothing_is_not_aimed_at():
    asks = Job("all", [], NOW)
    states = [[job("long")], [job("long"), asks], [job("long"), asks, job("short")]]
    assert moment(states, met={"long": 1}, known={"long", "short"}) == 2


def test_where_every_stage_was_met_the_drawn_job_is():
    """The second, third or fourth of the run, after a part of its time."""
    states = [[job("long")], *([[job("long"), *n * [job("long")]] for n in range(1, 6)])]
    assert moment(states, met={"long": 1}, known={"long"}) in (1, 2, 3)


def test_outputs_are_read_again_when_they_have_grown(tmp_path):
    path = tmp_path / "attempt1.txt"
    path.write_text("")
    output = kills.Output(path)
    assert output.jobs() == {}
    with path.open("a") as file:
        file.write("[Thu Jan  1 00:00:00 2026]\nrule a:\n    output: x, y\n    jobid: 3\n")
    assert output.jobs() == {3: Job("a", ["x", "y"], NOW)}
    with path.open("a") as file:
        file.write("[Thu Jan  1 00:00:01 2026]\nFinished jobid: 3 (Rule: a)\n")
    assert output.jobs()[3].finished == LATER


def test_kills_are_read_from_what_snakemake_wrote(tmp_path):
    """Of a run that was killed twice, failed once and then ended."""
    started = "[Thu Jan  1 00:00:00 2026]\nrule a:\n    output: x\n    jobid: 3\n"
    ended = "[Thu Jan  1 00:00:01 2026]\nFinished jobid: 3 (Rule: a)\n"
    failed = f"{started}Exiting because a job execution failed.\n"
    texts = ["Building DAG of jobs...\n", started, failed, f"{started}{ended}1 of 1 steps (100%) done\n"]
    logs = []
    for number, text in enumerate(texts, 1):
        logs.append(tmp_path / f"attempt{number}.txt")
        logs[-1].write_text(text)
    tally = Tally()
    tally.read(logs)
    assert (tally.kills, tally.before_any_job, tally.met) == (2, 1, {"a": 1})
    assert tally.killed_outputs == [("a", "x")]
    assert tally.failures == [str(logs[2])]
    assert tally.left_in_group is None
