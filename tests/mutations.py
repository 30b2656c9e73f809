"""Do the property tests notice when a rule is gone? `.venv/bin/python -m tests.mutations [word …]`

Each mutation takes ONE rule out of a copy of the tree, by replacing a piece of text, and runs the property tests that
have to fail then. Prints a table: which rule, and the assertion that missed it. Exits 1 when a mutation survives, when
the unchanged copy fails, or when the text that a mutation replaces is no longer there. With words, only mutations whose
names contain one of them. Takes some minutes; not part of `make test`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
COPIED = ("broker", "worker", "api", "cli", "chaos", "tests", "pyproject.toml")
LOG = "tests/property/test_log_model.py"
QUEUE = "tests/property/test_queue_model.py"
EVENTS = "tests/property/test_events_model.py"
JOINED = "tests/property/test_joined_model.py"
SEALED = "tests/broker/test_broker_sealed.py"
THROTTLE = ("tests/broker/test_broker_throttle.py",)
#: Time one run of a test file may take.
RUN_SECONDS = 600
AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule taken out: in `file`, `old` (which stands there once) becomes `new`; one of `caught_by` must fail."""

    rule: str
    file: str
    old: str
    new: str
    caught_by: Sequence[str]


MUTATIONS = (
    Mutation(
        rule="extend: only for the holder that the pass names",
        file="broker/scripts/extend.lua",
        old="redis.call('HGET', KEYS[1], 'pass') ~= ARGV[1] or ",
        new="not redis.call('HGET', KEYS[1], 'pass') or ",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="extend: the log is as long as its writer says",
        file="broker/scripts/extend.lua",
        old=" or redis.call('XLEN', KEYS[2]) ~= last",
        new="",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="extend: ends go the long way, where a stored cancel is looked at",
        file="broker/scripts/extend.lua",
        old="#ARGV[6] ~= 1 or ",
        new="",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="append: a writer that the record learns of takes the pass from the one before",
        file="broker/scripts/append.lua",
        old="    redis.call('HDEL', record, 'pass')\n  end\nend",
        new="  end\nend",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="claim: the holder before loses its pass",
        file="broker/scripts/claim.lua",
        old="redis.call('HDEL', record, 'pass', 'unattended_ms', 'waits')",
        new="redis.call('HDEL', record, 'unattended_ms', 'waits')",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="release: who gave the lease back loses its pass",
        file="broker/scripts/release.lua",
        old="redis.call('HDEL', KEYS[1], 'pass')\n",
        new="",
        caught_by=["tests/broker/test_broker_pass.py", "tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="pause: so does who waits for the client's tools",
        file="broker/scripts/pause.lua",
        old="redis.call('HDEL', record, 'pass')\n",
        new="",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="cancel: an append tells of a stored cancel",
        file="broker/scripts/cancel.lua",
        old="    redis.call('HDEL', record, 'pass')\n",
        new="",
        caught_by=["tests/broker/test_broker_pass.py", "tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="renew: and of one that it stored itself, for want of viewers",
        file="broker/scripts/renew.lua",
        old="      redis.call('HDEL', KEYS[1], 'pass')\n",
        new="",
        caught_by=["tests/broker/test_broker_pass.py"],
    ),
    Mutation(
        rule="append: an earlier epoch is fenced",
        file="broker/scripts/append.lua",
        old="or stored_epoch > epoch or",
        new="or",
        caught_by=[LOG],
    ),
    Mutation(
        rule="append: another owner of the same epoch is fenced",
        file="broker/scripts/append.lua",
        old=" or (stored_epoch == epoch and r[2] ~= ARGV[2])",
        new="",
        caught_by=[LOG],
    ),
    Mutation(
        rule="append: duplicates are told by whole ids, not by seqs",
        file="broker/scripts/append.lua",
        old="if id_at(i) == last then",
        new="if seq_of(id_at(i)) == seq_of(last) then",
        caught_by=[LOG, "tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="append: the log must end at prev, by its whole id",
        file="broker/scripts/append.lua",
        old="if last == ARGV[3] then",
        new="if seq_of(last) == seq_of(ARGV[3]) then",
        caught_by=[LOG],
    ),
    Mutation(
        rule="append: nothing follows a terminal event",
        file="broker/scripts/append.lua",
        old="if TERMINAL[last_field] then return {'closed', last} end",
        new="",
        caught_by=[LOG],
    ),
    Mutation(
        rule="append: after a cancel only `cancelled` ends it",
        file="broker/scripts/append.lua",
        old="if r[4] and r[4] ~= '' and TERMINAL[final] and final ~= 'cancelled' then",
        new="if false then",
        caught_by=[LOG],
    ),
    Mutation(
        rule="append: a rolled-back record learns of the claim it forgot",
        file="broker/scripts/append.lua",
        old="  if stored_epoch < epoch then\n",
        new="  if false then\n",
        caught_by=[LOG],
    ),
    Mutation(
        rule="claim: the epoch jumps when claims may be forgotten",
        file="broker/scripts/claim.lua",
        old="if replid == '' or replid ~= r[5] then",
        new="if false then",
        caught_by=[LOG],
    ),
    Mutation(
        rule="claim: a live lease is respected",
        file="broker/scripts/claim.lua",
        old="tonumber(r[3] or '0') - now\n    if left > 0 then",
        new="tonumber(r[3] or '0') - now\n    if false then",
        caught_by=[LOG],
    ),
    Mutation(
        rule="claim: an ended generation is not claimed",
        file="broker/scripts/claim.lua",
        old="if ENDED[r[4]] then",
        new="if false then",
        caught_by=[LOG],
    ),
    Mutation(
        rule="cancel: it writes under a higher epoch",
        file="broker/scripts/cancel.lua",
        old="local epoch = tonumber(r[1]) + 1\n",
        new="local epoch = math.max(1, tonumber(r[1]))\n",
        caught_by=[LOG],
    ),
    Mutation(
        rule="read: a cursor is held only by its whole id",
        file="broker/scripts/read.lua",
        old="if entry[1] == cursor then return true end",
        new="if seq_of(entry[1]) == seq_of(cursor) then return true end",
        caught_by=[LOG],
    ),
    Mutation(
        rule="read: a joined entry holds positions of its own epoch only",
        file="broker/scripts/read.lua",
        old="string.match(entry[1], '%-.*') == string.match(cursor, '%-.*')\n    and ",
        new="",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="read: and of those only as many as it stands for",
        file="broker/scripts/read.lua",
        old="\n    and seq_of(cursor) > seq_of(entry[1]) - #lengths",
        new="",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="read: the rest of a joined entry is given to who has the beginning",
        file="broker/joined.py",
        old="rows[1:] if seen >= count else [_part(first, seen, count), *rows[1:]]",
        new="rows[1:]",
        caught_by=[SEALED, JOINED],
    ),
    Mutation(
        rule="seal: only a log that has ended",
        file="broker/scripts/seal.lua",
        old=" or not ENDED[tail[2][1]] or not ENDED[redis.call('HGET', KEYS[1], 'state')]",
        new="",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="seal: only the one that ends in the event that is meant",
        file="broker/scripts/seal.lua",
        old="if not tail or tail[1] ~= ARGV[1] or",
        new="if not tail or",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="seal: only one of single events, as many as are given",
        file="broker/scripts/seal.lua",
        old="if length ~= seq then return",
        new="if false then return",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="seal: no position is left out",
        file="broker/scripts/seal.lua",
        old="if tonumber(string.match(ARGV[i], '^(%d+)-%d+$')) ~= seq then",
        new="if false then",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="seal: the log expires when it would have",
        file="broker/scripts/seal.lua",
        old="if left >= 0 then",
        new="if false then",
        caught_by=[SEALED],
    ),
    Mutation(
        rule="seal: deltas of two epochs are not joined",
        file="broker/joined.py",
        old="if field in DELTA_FIELDS and one_epoch else",
        new="if field in DELTA_FIELDS else",
        caught_by=[JOINED],
    ),
    Mutation(
        rule="seal: a log that was put back is sealed again",
        file="worker/keeper.py",
        old="            kept.sealed = False\n",
        new="",
        caught_by=["tests/broker/test_broker_keeper.py"],
    ),
    Mutation(
        rule="seal: who leaves does not wait for it",
        file="worker/keeper.py",
        old="            kept.checks += 1  # who leaves waits for this, and not for the sealing\n"
        "            if whole and not kept.sealed:\n                await self._seal(kept)\n",
        new="            if whole and not kept.sealed:\n                await self._seal(kept)\n"
        "            kept.checks += 1\n",
        caught_by=["tests/broker/test_broker_keeper.py"],
    ),
    Mutation(
        rule="append: what is stored is looked for before a log is called closed",
        file="broker/scripts/append.lua",
        old="if skip and skip == count then return {'appended', last, '0', r[4] or ''} end\n"
        "if TERMINAL[last_field] then return {'closed', last} end\n",
        new="if TERMINAL[last_field] then return {'closed', last} end\n"
        "if skip and skip == count then return {'appended', last, '0', r[4] or ''} end\n",
        caught_by=["tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="append: no holes",
        file="broker/scripts/append.lua",
        old="if seq_of(id_at(i)) ~= expected then",
        new="if false then",
        caught_by=["tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="claim: the epoch rises",
        file="broker/scripts/claim.lua",
        old="epoch = math.max(epoch, tonumber(ARGV[3])) + 1",
        new="epoch = math.max(1, epoch, tonumber(ARGV[3]))",
        caught_by=[LOG],
    ),
    Mutation(
        rule="claim: it rises above the epoch that the claimer had",
        file="broker/scripts/claim.lua",
        old="epoch = math.max(epoch, tonumber(ARGV[3])) + 1",
        new="epoch = epoch + 1",
        caught_by=["tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="claim: repeated by its owner it has the same answer",
        file="broker/scripts/claim.lua",
        old="if owner ~= ARGV[1] or owner == '' then",
        new="if true then",
        caught_by=[LOG, "tests/broker/test_broker_log.py"],
    ),
    Mutation(
        rule="claim: an attempt is charged only where one was lost or has failed",
        file="broker/scripts/claim.lua",
        old="if charged then attempt",
        new="if true then attempt",
        caught_by=["tests/acceptance/test_recovery.py"],
    ),
    Mutation(
        rule="writer: what was sent once is never changed, nor joined with what comes",
        file="worker/writer.py",
        old="        entries.append(Entry(",
        new="        if len(entries) > self._stored and entries[-1].field == field == TEXT_FIELD:\n"
        "            entries[-1] = entries[-1]._replace(payload=entries[-1].payload + payload)\n"
        "        else:\n"
        "            entries.append(Entry(",
        caught_by=[LOG],
    ),
    Mutation(
        rule="window: dropped only if it was passed exactly, not by its seq",
        file="broker/window.py",
        old="if entries and (entries[-1].position in self._index or entries[-1].position == self.last):",
        new='if entries and int(entries[-1].position.split("-")[0]) <= int((self.last or "0-0").split("-")[0]):',
        caught_by=[LOG, EVENTS],
    ),
    Mutation(
        rule="tail: the last entry is looked at once a second",
        file="broker/tail.py",
        old="if topic.window.last == before != head:",
        new="if False:",
        caught_by=["tests/broker/test_broker_tail.py"],
    ),
    Mutation(
        rule="window: a notification joins only behind its prev",
        file="broker/window.py",
        old="if prev != self.last:",
        new="if self.last is None:",
        caught_by=[LOG, EVENTS],
    ),
    Mutation(
        rule="window: joined by the whole position, not by its seq",
        file="broker/window.py",
        old="if prev != self.last:",
        new='if self.last is None or prev.split("-")[0] != self.last.split("-")[0]:',
        caught_by=[EVENTS],
    ),
    Mutation(
        rule="writer: the whole log is held, not only its own events",
        file="worker/writer.py",
        old="self._entries[seq - 1].position == position",
        new='position == self._entries[seq - 1].position and position.endswith(f"-{self.lease.epoch}")',
        caught_by=[LOG],
    ),
    Mutation(
        rule="writer: what it writes anew stands behind a reset",
        file="worker/writer.py",
        old="self.add(Reset(attempt=",
        new="(lambda event: None)(Reset(attempt=",
        caught_by=[LOG],
    ),
    Mutation(
        rule="queue: a hint that is there is not added again",
        file="broker/scripts/enqueue.lua",
        old="if redis.call('ZSCORE', KEYS[2], ARGV[4]) or redis.call('ZSCORE', KEYS[1], ARGV[4]) then return 0 end",
        new="",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: a hint in flight is not added again",
        file="broker/scripts/enqueue.lua",
        old="redis.call('ZSCORE', KEYS[2], ARGV[4]) or ",
        new="",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: what is taken stays in flight",
        file="broker/scripts/take.lua",
        old="  redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ARGV[2])), hint)\n",
        new="",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: a tenant's hints are tagged one after the other",
        file="broker/scripts/enqueue.lua",
        old="redis.call('ZADD', KEYS[1], string.format('%.17g', tag), ARGV[4])",
        new="redis.call('ZADD', KEYS[1], '0', ARGV[4])",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: an idle tenant starts at the present, not in the past",
        file="broker/scripts/enqueue.lua",
        old="math.max(tonumber(redis.call('HGET', KEYS[4], ARGV[1]) or '0'),",
        new="math.max(0,",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: weights count",
        file="broker/scripts/enqueue.lua",
        old="tag + 1 / tonumber(ARGV[3])",
        new="tag + 1",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="queue: batch has its turns",
        file="broker/scripts/take.lua",
        old="% tonumber(ARGV[3]) == 0 and 2 or 1",
        new="% tonumber(ARGV[3]) == -1 and 2 or 1",
        caught_by=[QUEUE],
    ),
    Mutation(
        rule="position: no leading zeros",
        file="broker/position.py",
        old="[1-9][0-9]{0,15}-",
        new="[0-9]{1,16}-",
        caught_by=[EVENTS],
    ),
    Mutation(
        rule="position: nothing behind it, not even a newline",
        file="broker/position.py",
        old="_GRAMMAR.fullmatch(text)",
        new="_GRAMMAR.match(text)",
        caught_by=[EVENTS],
    ),
    Mutation(
        rule="throttle, admit: same holder admitted again pays nothing",
        file="broker/scripts/admit.lua",
        old="if held == claim then return {'admitted'} end",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: the call behind a lost one counts",
        file="broker/scripts/admit.lua",
        old="if held == claim then",
        new="if held <= claim then",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: concurrency",
        file="broker/scripts/admit.lua",
        old="if most_calls then",
        new="if false then",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: slots of vanished holders come back",
        file="broker/scripts/admit.lua",
        old="for _, key in ipairs({running, asked, probes})",
        new="for _, key in ipairs({asked, probes})",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: fair turns (rank of concurrency)",
        file="broker/scripts/admit.lua",
        old="local over = rank - (",
        new="local over = 0 - (",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: several free slots serve several waiters",
        file="broker/scripts/admit.lua",
        old="local over = rank - (most_calls - redis.call('ZCARD', running)) + 1",
        new="local over = (rank > 0 and most_calls or rank) - (most_calls - redis.call('ZCARD', running)) + 1",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: turns of those who ask no more are lost",
        file="broker/scripts/admit.lua",
        old="do redis.call('ZREM', waiting, gone) end",
        new="do local _ = gone end",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: a ticket lives beyond its hint",
        file="broker/scripts/admit.lua",
        old="local GRACE_MS = 3000",
        new="local GRACE_MS = 1",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: requests a minute",
        file="broker/scripts/admit.lua",
        old="if request_ms then also(",
        new="if false then also(",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: requests cost what they should",
        file="broker/scripts/admit.lua",
        old="requests_full + request_ms)",
        new="requests_full + request_ms / 4)",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: tokens a minute",
        file="broker/scripts/admit.lua",
        old="if token_ms then also(",
        new="if false then also(",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: burst of one minute",
        file="broker/scripts/admit.lua",
        old="- MINUTE_MS - now, LONGEST",
        new="- 3 * MINUTE_MS - now, LONGEST",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: larger than the bucket goes when full",
        file="broker/scripts/admit.lua",
        old="math.min(own_ms, MINUTE_MS)",
        new="own_ms",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: small ones do not overtake a large one",
        file="broker/scripts/admit.lua",
        old="tokens_before * token_ms, tokens",
        new="0 * token_ms, tokens",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: long waits told in parts",
        file="broker/scripts/admit.lua",
        old="- MINUTE_MS - now, LONGEST_BUCKET_MS)",
        new="- MINUTE_MS - now, 10 * MINUTE_MS)",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: an open circuit admits nobody",
        file="broker/scripts/admit.lua",
        old="if open_until > now then return wait(",
        new="if false then return wait(",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: few probes",
        file="broker/scripts/admit.lua",
        old="if redis.call('ZCARD', probes) >= tonumber(ARGV[11])",
        new="if false",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: probes run out",
        file="broker/scripts/admit.lua",
        old="whole(now + tonumber(ARGV[12]))",
        new="whole(now + 600000)",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: retry budget",
        file="broker/scripts/admit.lua",
        old="if retry and retries + 1 >",
        new="if false and retries + 1 >",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: retries earn nothing",
        file="broker/scripts/admit.lua",
        old="if retry then retries_now = retries_now + 1 else firsts_now = firsts_now + 1 end",
        new="if retry then retries_now = retries_now + 1 end firsts_now = firsts_now + 1",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: first calls earn",
        file="broker/scripts/admit.lua",
        old="* firsts then",
        new="* 0 then",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: earnings last a minute",
        file="broker/scripts/admit.lua",
        old="tonumber(slot) > slot_now - SLOTS",
        new="tonumber(slot) > 0",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: a refused retry leaves the queue",
        file="broker/scripts/admit.lua",
        old="  redis.call('ZREM', waiting, holder)\n  redis.call('ZREM', asked, holder)\n  return {'refused'",
        new="  return {'refused'",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: Retry-After holds",
        file="broker/scripts/admit.lua",
        old="if hold_until > now then",
        new="if false then",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: keys expire",
        file="broker/scripts/admit.lua",
        old="do redis.call('PEXPIRE', KEYS[i], whole(ttl_ms)) end",
        new="do local _ = i end",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, admit: a debt outlives the TTL",
        file="broker/scripts/admit.lua",
        old="  ttl_ms = math.max(ttl_ms, tokens_full - now + MINUTE_MS)\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: once only",
        file="broker/scripts/settle.lua",
        old="redis.call('HDEL', calls, holder)\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: frees the slot",
        file="broker/scripts/settle.lua",
        old="redis.call('ZREM', running, holder)\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: frees the probe",
        file="broker/scripts/settle.lua",
        old="redis.call('ZREM', probes, holder)\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: gives a turn back",
        file="broker/scripts/settle.lua",
        old="redis.call('ZREM', waiting, holder)\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: corrects tokens",
        file="broker/scripts/settle.lua",
        old="(tonumber(ARGV[3]) - tonumber(estimate))",
        new="(0)",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: ... nor counted from the past",
        file="broker/scripts/settle.lua",
        old="local tokens_full = math.max(tonumber(t[5] or '0'), now)",
        new="local tokens_full = tonumber(t[5] or '0')",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: the longest hold counts",
        file="broker/scripts/settle.lua",
        old="math.max(tonumber(t[4] or '0'), now + tonumber(ARGV[4]))",
        new="now + tonumber(ARGV[4])",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: opens",
        file="broker/scripts/settle.lua",
        old="      open(0)\n",
        new="      did = ''\n",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: not below the least number",
        file="broker/scripts/settle.lua",
        old="settled >= tonumber(ARGV[8]) and ",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: not below the share",
        file="broker/scripts/settle.lua",
        old=" and failures >= tonumber(ARGV[9]) * settled",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: neutral says nothing",
        file="broker/scripts/settle.lua",
        old=" and outcome ~= 'neutral'",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: window rolls",
        file="broker/scripts/settle.lua",
        old="if slot and tonumber(slot) > slot_now - SLOTS",
        new="if slot",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: window is kept",
        file="broker/scripts/settle.lua",
        old="settled, failures = settled + some, failures + bad",
        new="settled, failures = settled, failures",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: probe OK closes",
        file="broker/scripts/settle.lua",
        old="redis.call('HDEL', throttle, 'open_until', 'reopened')",
        new="redis.call('HDEL', throttle, 'reopened')",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: probe FAILED reopens",
        file="broker/scripts/settle.lua",
        old="open(reopened + 1)",
        new="did = ''",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: longer each time",
        file="broker/scripts/settle.lua",
        old="open(reopened + 1)",
        new="open(0)",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: 8 times at most",
        file="broker/scripts/settle.lua",
        old="math.min(times, DOUBLINGS)",
        new="times",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: calls of another round have no say",
        file="broker/scripts/settle.lua",
        old="if tonumber(began) == round and",
        new="if",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, settle: the window is new after a turn",
        file="broker/scripts/settle.lua",
        old="  redis.call('HDEL', throttle, unpack(SLOT_FIELDS))\n",
        new="",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, keep: renews",
        file="broker/scripts/keep.lua",
        old="do redis.call('ZADD', KEYS[2], 'XX', deadline, ARGV[i]) end",
        new="do local _ = i end",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, keep: takes no slot",
        file="broker/scripts/keep.lua",
        old="'XX', deadline",
        new="deadline",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, keep: keys live on",
        file="broker/scripts/keep.lua",
        old="do redis.call('PEXPIRE', KEYS[i], ARGV[2], 'GT') end",
        new="do local _ = i end",
        caught_by=THROTTLE,
    ),
    Mutation(
        rule="throttle, state: lapsed slots do not count",
        file="broker/scripts/provider.lua",
        old="redis.call('ZCOUNT', KEYS[2], later, '+inf')",
        new="redis.call('ZCARD', KEYS[2])",
        caught_by=THROTTLE,
    ),
)


def main(words: list[str]) -> int:
    chosen = [each for each in MUTATIONS if not words or any(word in each.rule for word in words)]
    for each in chosen:
        if (times := (TREE / each.file).read_text().count(each.old)) != 1:
            print(f"{each.rule}: {each.file} holds {times} times, not once: {each.old!r}", file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        plain = copy_tree(Path(scratch) / "unchanged")
        for file in sorted({file for each in chosen for file in each.caught_by}):
            if (failure := first_failure(plain, file)) is not None:
                print(f"{file} fails on the unchanged tree: {failure}", file=sys.stderr)
                return 1
        with ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes = pool.map(lambda at: outcome(chosen[at], Path(scratch) / str(at)), range(len(chosen)))
            width = max(len(each.rule) for each in chosen)
            survived = 0
            for mutation, failures in zip(chosen, outcomes, strict=True):
                survived += all(failure is None for failure in failures.values())
                for file, failure in failures.items():
                    print(f"{mutation.rule:<{width}}  {failure or f'SURVIVED {file}'}", flush=True)
    print(f"{len(chosen)} rules, {survived} survived")
    return 1 if survived else 0


def outcome(mutation: Mutation, place: Path) -> dict[str, str | None]:
    """For each test file that has to notice: what it said, or None when it noticed nothing."""
    tree = copy_tree(place)
    target = tree / mutation.file
    target.write_text(target.read_text().replace(mutation.old, mutation.new))
    return {file: first_failure(tree, file) for file in mutation.caught_by}


def copy_tree(place: Path) -> Path:
    place.mkdir()
    for name in COPIED:
        if (TREE / name).is_dir():
            shutil.copytree(TREE / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(TREE / name, place / name)
    return place


def first_failure(tree: Path, file: str) -> str | None:
    """The first test that fails and its message; None when all pass. A run that did not get to testing is an error."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", file],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "LEGATO_MODEL_SHRINK": "no"},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    if run.returncode == 0:
        return None
    # A promise that is found broken when a schedule is torn down is an error to pytest.
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(\S+)", run.stdout, re.MULTILINE)
    if run.returncode != 1 or failed is None:
        raise SystemExit(f"{file} could not be run:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
    said = re.search(r"^E +(?:\w+(?:\.\w+)*: )?(\S.*)$", run.stdout, re.MULTILINE)
    return f"{failed[1]}: {said[1][:90] if said else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
