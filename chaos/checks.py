"""What must hold when everything has settled. What a fault explains is excused (`chaos.losses`), and counted."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from chaos.faults import Done, Loss
from chaos.follower import TERMINAL, Sightings, Violation, results_of
from chaos.jobs import Job
from chaos.losses import SLACK_SECONDS, Losses
from chaos.processes import Child, Held, Waits
from chaos.schedule import Kind

#: How long after a fault things may be slow, and how late an end may be told when nothing is wrong: a notification that
#: is lost costs a second.
_AFTERMATH_SECONDS: Final = 4.0
_LATE_SECONDS: Final = 4.0
_STARTING_SECONDS: Final = 5.0
#: A worker that waits for a processor for this part of its lease cannot be counted on to renew it; nor one whose way to
#: the store does, which is this process.
_STARVED: Final = 4
#: A refused submit whose outcome was unknown is taken back within this time, the outage that explains it included.
_TAKEN_BACK_SECONDS: Final = 15.0
#: What a submit may be answered; 0 is nothing at all.
_ANSWERS: Final = frozenset({0, 202, 429, 503})
#: … and results of tools: they may be known already, or come when nobody waits for them, or behind a loss.
_RESULT_ANSWERS: Final = frozenset({0, 200, 202, 404, 409, 410, 429, 503})

#: Part of the event with which a generation waits for its client's tools.
_WAITING: Final = '"phase":"waiting_for_tools"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Final_:
    """What `GET /v1/generations/{id}` says in the end."""

    status: int  # of HTTP
    body: Mapping[str, Any]


@dataclass(slots=True)
class Verdict:
    """What the checks found."""

    violations: list[Violation] = field(default_factory=list)
    exceptions: Counter[str] = field(default_factory=Counter)
    excused: list[tuple[str, str]] = field(default_factory=list)  # why, which
    ends: Counter[str] = field(default_factory=Counter)
    characters: int = 0  # compared
    texts: int = 0
    prompt: int = 0  # ends whose delay could be judged
    latest_seconds: float = 0.0

    def excuse(self, why: str, generation: str) -> None:
        self.exceptions[why] += 1
        self.excused.append((why, generation))

    def wrong(self, check: str, generation: str, detail: str) -> None:
        self.violations.append(Violation(check, generation, detail))


def check_jobs(
    jobs: Sequence[Job], finals: Mapping[str, Final_], sightings: Sightings, losses: Losses, verdict: Verdict
) -> None:
    """Every accepted job has ended, once, with the right text, and every client shows that text."""
    for job in jobs:
        if strange := set(job.answers) - _ANSWERS:
            verdict.wrong("status", job.id or f"job {job.number}", f"a submit was answered {sorted(strange)}")
        if strange := set(job.results_answers) - _RESULT_ANSWERS:
            verdict.wrong("status", job.id or f"job {job.number}", f"results of tools were answered {sorted(strange)}")
        if job.id is None:
            continue
        generation, final = job.id, finals[job.id]
        gone = losses.why_gone(job)
        if final.status in (404, 410):
            verdict.ends["lost"] += 1
            if gone is None:
                seen = json.dumps(sightings.ends.get(generation, {}))[:200]
                verdict.wrong("202_and_gone", generation, f"GET says {final.status}; clients saw {seen}")
            else:
                verdict.excuse(gone, generation)
            _check_readers(job, None, losses, verdict)
            continue
        state, text = str(final.body.get("status")), str(final.body.get("text"))
        verdict.ends[state] += 1
        if state not in TERMINAL:
            verdict.wrong("202_and_no_end", generation, f"settled as {state}")
            continue
        _check_end(job, state, text, final.body, losses, verdict)
        _check_readers(job, final.body, losses, verdict)
        ends = sightings.ends.get(generation, {})
        if len(ends) > 1:
            why = losses.why_end_lost(generation)
            if why is not None:
                verdict.excuse(why, generation)
            else:
                verdict.wrong("two_ends", generation, f"clients saw {json.dumps(ends)[:400]}")


def _check_end(job: Job, state: str, text: str, body: Mapping[str, Any], losses: Losses, verdict: Verdict) -> None:
    generation, shape = str(job.id), job.draft.shape.value
    match state:
        case "completed":
            if sorted(results_of(body)) != sorted(job.draft.results.items()):
                wanted = sorted(job.draft.results)
                verdict.wrong("tool_results", generation, f"{results_of(body)} for the calls {wanted}")
            if text != job.expected:
                verdict.wrong("final_text", generation, _difference(text, job.expected))
            if job.cancel_stored_at is not None:
                why = losses.why_rolled_back(generation, job.cancel_stored_at)
                if why is None:
                    verdict.wrong("cancel_forgotten", generation, "202 to a cancel, and it ended completed")
                else:
                    verdict.excuse(f"cancel_{why}", generation)
        case "cancelled":
            if not job.expected.startswith(text):
                verdict.wrong("final_text", generation, _difference(text, job.expected))
            if job.cancel_asked_at is None:
                verdict.wrong("cancelled_by_nobody", generation, json.dumps(dict(body))[-300:])
        case _:
            if not job.expected.startswith(text):
                verdict.wrong("final_text", generation, _difference(text, job.expected))
            if body.get("code") not in job.draft.may_fail:
                verdict.wrong("failed", generation, f"a job of shape {shape}: {json.dumps(body.get('error'))}")


def _check_readers(job: Job, body: Mapping[str, Any] | None, losses: Losses, verdict: Verdict) -> None:
    """`body` None: nothing is left to compare with but what the job had to be."""
    generation = str(job.id)
    state, text = (str(body["status"]), str(body["text"])) if body is not None else (None, None)
    head, results = (body["position"], results_of(body)) if body is not None else (None, [])
    for reader in job.readers:
        follower, who = reader.follower, reader.manners.transport.value
        if reader.refused is not None:
            if state is None:
                verdict.excuse(f"reader_{losses.why_gone(job)}", generation)
            else:
                cursor = reader.refused_with
                verdict.wrong("refused", generation, f"{who} with cursor {cursor} got {reader.refused}, but {state}")
            continue
        if follower.end is None:
            verdict.wrong("client_without_end", generation, f"{who} at {follower.cursor}, {state}")
            continue
        verdict.texts += 1
        verdict.characters += len(follower.text)
        lost_end = losses.why_end_lost(generation) if head not in (None, follower.cursor) else None
        if lost_end is not None:
            # It saw an end that the store then forgot, with the only one who could have put it back: there was another.
            verdict.excuse(f"reader_{lost_end}", generation)
        if text is None or lost_end is not None:
            if follower.end == "completed" and follower.text != job.expected:
                verdict.wrong("client_text", generation, f"{who}: {_difference(follower.text, job.expected)}")
            continue
        if follower.text != text:
            detail = f"{_difference(follower.text, text)}; {follower.end}/{state}; verdicts {follower.verdicts[-8:]}"
            verdict.wrong("client_text", generation, f"{who}: {detail}")
        if follower.results != results:
            verdict.wrong("client_tool_results", generation, f"{who} saw {follower.results}, stored is {results}")
        if follower.end != state:
            verdict.wrong("client_end", generation, f"{who} saw {follower.end}, final is {state}")


def check_promptness(
    jobs: Sequence[Job], finals: Mapping[str, Final_], faults: Sequence[Done], verdict: Verdict
) -> None:
    """Whoever was connected when the end was stored, and when nothing was wrong, was told of it at once."""
    troubles = [(done.since, done.until + _AFTERMATH_SECONDS) for done in faults if not _is_a_cut(done)]
    for job in jobs:
        stored_at = finals[job.id].body.get("ended_at") if job.id is not None else None
        if stored_at is None:
            continue
        begins, ends = stored_at - _AFTERMATH_SECONDS, stored_at + _LATE_SECONDS
        if any(since < ends and begins < until for since, until in troubles):
            continue
        for reader in job.readers:
            for since, until in reader.attached:
                if reader.manners.slow or not since < stored_at < until:
                    continue
                late = until - stored_at
                verdict.prompt += 1
                verdict.latest_seconds = max(verdict.latest_seconds, late)
                if late > _LATE_SECONDS:
                    who = reader.manners.transport.value
                    verdict.wrong("late", str(job.id), f"{who} was attached for {late:.1f} s behind the end")


def _is_a_cut(done: Done) -> bool:
    """Faults that nobody can be under who is still connected."""
    return done.fault.kind in (Kind.VIEWERS_CUT, Kind.VIEWERS_CUT_AT)


def check_logs(
    logs: Mapping[str, list[tuple[str, str, str]]], accepted: set[str], losses: Sequence[Loss], verdict: Verdict
) -> None:
    """Dense, in order of epochs, one terminal event, the last one, none of an older epoch behind a newer; and nobody
    takes the store for rolled back that was not. What nobody was given the id of (its submit had no answer, or its key
    was forgotten) may wait for the results of tools that nobody runs."""
    for key, entries in logs.items():
        seq, epoch = 0, 0
        generation = generation_of(key)
        for place, event, payload in entries:
            if (
                event == "reset"
                and "store_rolled_back" in payload
                and not any(loss.covers(generation) for loss in losses)
            ):
                verdict.wrong("rolled_back_by_nothing", generation, f"{payload} at {place}, and nothing was lost")
            this_seq, _, this_epoch = place.partition("-")
            if int(this_seq) != seq + 1:
                verdict.wrong("hole", key, f"{place} after seq {seq}")
            if int(this_epoch) < epoch:
                verdict.wrong("older_epoch_in_log", key, f"{place} after epoch {epoch}")
            if int(this_epoch) > epoch and event not in ("started", "reset", *TERMINAL, "status"):
                verdict.wrong("epoch_without_start", key, f"{event} at {place} is the first of its epoch")
            seq, epoch = int(this_seq), int(this_epoch)
        ends = [place for place, event, _ in entries if event in TERMINAL]
        if generation not in accepted and entries and _WAITING in entries[-1][2]:
            verdict.excuse("waits_for_nobody", generation)
        elif entries and ends != [entries[-1][0]]:
            verdict.wrong("terminal_in_log", key, f"terminal events at {ends}, last entry {entries[-1][:2]}")


def generation_of(key: str) -> str:
    """Whose log it is."""
    return key[key.index("{") + 1 : key.index("}")]


def check_take_overs(
    holdings: Sequence[Held], losses: Losses, ours: Waits, *, lease_seconds: float, verdict: Verdict
) -> None:
    """Nobody takes a generation from a worker that lives and is awake, whatever the store went through. Costs no text,
    but it costs an attempt: the living would lose everything at every outage."""
    by_generation: dict[str, list[Held]] = {}
    for item in holdings:
        by_generation.setdefault(item.generation, []).append(item)
    for generation, items in by_generation.items():
        items.sort(key=lambda item: item.since)
        for before, after in pairwise(items):
            let_go = before.ended_at or before.until
            if after.since + SLACK_SECONDS >= let_go or losses.why_rolled_back(generation, before.since):
                continue
            asleep = any(
                since <= after.since and until >= after.since - lease_seconds - _AFTERMATH_SECONDS
                for since, until in before.life.pauses
            )
            waited = max(each.between(after.since - lease_seconds, after.since) for each in (before.life.waits, ours))
            starved = waited > lease_seconds / _STARVED
            if starved and not asleep:
                verdict.excuse("worker_without_processor", generation)
            elif not asleep:
                names = f"{after.life.log.stem} took it from {before.life.log.stem}"
                late = let_go - after.since
                verdict.wrong("taken_from_the_living", generation, f"{names}, which let go {late:.1f} s later")


def check_stored(
    jobs: Sequence[Job],
    stored: Mapping[str, int | None],  # generation -> number of its job
    losses: Losses,
    api_ends: Sequence[float],  # when a process of the API ended
    verdict: Verdict,
) -> None:
    """What is stored is what was accepted: a refusal stored nothing, a repeated submit stored nothing more. What is
    stored though the refusal said otherwise, an API takes back as soon as it can; unless it ends before."""
    accepted = {job.id for job in jobs}
    for generation, number in stored.items():
        if generation in accepted:
            continue
        job = jobs[number] if number is not None and number < len(jobs) else None
        if job is None:
            verdict.wrong("unknown_record", generation, f"nobody asked for it (number {number})")
        elif job.key is None and job.answers[-1] == 0:
            verdict.excuse("answer_lost_without_key", generation)
        elif job.key is None and any(job.asked_at < end < job.answered_at + _TAKEN_BACK_SECONDS for end in api_ends):
            verdict.excuse("refused_and_not_taken_back", generation)
        elif job.key is None:
            verdict.wrong("refused_and_stored", generation, f"job {number} got {job.answers}, no key")
        elif losses.why_key_forgotten(job):
            verdict.excuse("key_forgotten", generation)
        else:
            verdict.wrong("stored_twice", generation, f"job {number} is {job.id}, answers {job.answers}")


def check_refused(
    jobs: Sequence[Job],
    stored: Mapping[str, int | None],  # generation -> number of its job
    logs: Mapping[str, list[tuple[str, str, str]]],  # by generation
    faults: Sequence[Done],
    verdict: Verdict,
) -> None:
    """What was refused does not run. To be asked before it is submitted again. Only where the store itself failed just
    then may the refusal have been mistaken: the answer of the last step was lost."""
    for generation, number in stored.items():
        job = jobs[number] if number is not None and number < len(jobs) else None
        if job is None or not job.was_refused or not logs.get(generation):
            continue
        if any(done.fault.kind.is_of_the_store and _overlaps(done, job.asked_at, job.answered_at) for done in faults):
            verdict.excuse("refused_and_ran", generation)
        else:
            verdict.wrong("refused_and_ran", generation, f"job {job.number} got {job.answers}, and its log has events")


def _overlaps(done: Done, since: float, until: float) -> bool:
    return done.since < until + _AFTERMATH_SECONDS and since < done.until + _AFTERMATH_SECONDS


def check_tools(ran_twice: Sequence[tuple[str, str]], losses: Losses, verdict: Verdict) -> None:
    """A tool that may not run twice has not."""
    for generation, call in ran_twice:
        if losses.any_of(generation):
            verdict.excuse("tool_run_lost", generation)
        else:
            verdict.wrong("tool_ran_twice", generation, call)


def check_processes(children: Sequence[Child], verdict: Verdict, *, most_tasks: int) -> None:
    """Nobody logged an error, nobody ended unasked, nobody had to be killed, and in the end nobody did anything."""
    for child in children:
        for life in child.lives:
            for line in life.complaints()[:3]:
                verdict.wrong("complaint", child.name, line)
            code = life.process.returncode
            starting = (life.ended_at or time.time()) - life.started_at < _STARTING_SECONDS
            if code == -signal.SIGTERM and starting:
                continue  # it was told to stop before it could listen to that
            if code not in (None, 0, -signal.SIGKILL):
                verdict.wrong("exit", child.name, f"{life.log.name} ended with status {code}")
        tasks = child.now.tasks_at_stop
        if tasks is not None and tasks > most_tasks:
            verdict.wrong("tasks", child.name, f"{tasks} tasks when nobody used it, at most {most_tasks}")
        if child.slow_stops:
            verdict.wrong("slow_stop", child.name, f"{child.slow_stops} times SIGTERM was not enough")


def _difference(found: str, wanted: str) -> str:
    at = next(
        (at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return (
        f"{len(found)} characters for {len(wanted)}, different from {at}: "
        f"{found[max(0, at - 20) : at + 30]!r} for {wanted[max(0, at - 20) : at + 30]!r}"
    )
