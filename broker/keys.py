"""Every key name in Redis, a function each. Nothing else in Legato spells a key.

`{…}` is the hash tag: all keys with one tag share a slot, and every script touches one tag only.
`p` is the setting `LEGATO_PREFIX` (default `lg`).

One generation, tag `{gen_…}` (broker.records, broker.lease, broker.log):
    p:{gen}:record   hash    see below; no TTL before the terminal event, except `unconfirmed_seconds` from submit until
                             its hint is confirmed; afterwards the log's TTL and `tombstone_seconds` more (410)
    p:{gen}:log      stream  one entry an event, id = position, one field; exists from submit on; expires
                             `ttl_seconds` after the terminal event. Once its worker has sealed it, soon after its end:
                             one entry for many deltas, id = position of the last, with a second field `c`, the length
                             of each, a byte a delta (broker.joined)
    p:{gen}:request  string  JSON of what was asked, prompt included; same TTL as the log
    p:{gen}:viewers  zset    processes that have viewers, score = last seen; only where the request says that nobody
                             reading cancels; written by broker.presence, read by the renew script
    p:{gen}:live     channel sharded pub/sub; msgpack [prev, id, field, payload, id, field, payload …], or [deleted];
                             of one delta mostly as text, "prev id field payload"; written by the append, cancel,
                             rebuild and delete scripts, read by broker.tail

Fields of a record, by who writes them (times in ms of the server's clock):
    create           waits (until its turn comes in its thread; taken off by broker.threads)
    create, rebuild  tenant provider model priority thread metadata max_attempts ttl_ms stub_ms grace_ms created_ms
                     hooks (JSON: endpoints to be told of its end, and the URL that was asked for)
    claim            epoch owner lease history attempt charge overdue state started_ms head
    append, cancel   head pass; at the end state ended_ms failure, and `end` (data of the terminal event) where there
                     are `hooks`; with events of a worker: upstream (a provider's mark), pending (ids of the calls that
                     the client runs), timings (at the end)
    pause            owner lease charge tools_until state
    results          call:<id> of each call whose result the client gave; state
    renew            lease head; cancel cancel_ms unattended_ms where nobody reads
    presence         takes unattended_ms away
    release          owner lease state charge
    cancel           cancel cancel_ms; epoch owner history where it writes the end itself
    hook             hook:<endpoint> ("<tries> <outcome>", see broker.webhooks)
    delete           leaves tenant priority epoch state=deleted: the tombstone
`head` is where the log was last seen to end, by a claim, a renewal or an append that went the long way. `pass` is there
while the next delta needs no closer look (extend.lua); claim, cancel, pause, release and renew take it away.

One provider, tag `{p:NAME}` (broker.throttle); all of them expire some minutes after its last call:
    p:{p:NAME}:throttle
                     hash    see below
    p:{p:NAME}:running  zset holders of calls; score = until when they count, ms of the server's clock
    p:{p:NAME}:calls hash    holder of a call -> "<tokens it may use> <round it began in> <claim of the holder>"
    p:{p:NAME}:probes zset   holders of calls that try a provider whose circuit is half open; score = until when they
                             count as such
    p:{p:NAME}:waiting  zset holders that wait for their turn; score = tokens that were asked for before it
    p:{p:NAME}:asked zset    the same holders; score = when a turn is lost that nobody asks for again

Fields of a throttle, by who writes them (times in ms of the server's clock):
    admit            requests_full tokens_full (when a bucket is full again)  tickets (tokens asked for by all who wait)
                     m0 … m5 ("<slot> <first calls> <retries>", 10 s each)
    settle           open_until reopened (how often in a row; only while the circuit is not closed)  round (openings and
                     closings so far)  w0 … w9 ("<slot> <settled> <failed>", a tenth of the breaker's window each)
                     hold_until  tokens_full

One node, tag `{m0}`, `{m1}` … whichever first falls to it (broker.store):
    p:{mN}:marker    string  "<run id> <ms>": since when the node may have lost data

One tenant, tag `{t:…}` (broker.records, broker.budget):
    p:{t:T}:key:H    string  "<fingerprint> <generation>" of an Idempotency-Key with SHA-256 H; TTL
                             `idempotency_seconds`
    p:{t:T}:spent    hash    day (UTC, days since 1970) and tokens: output tokens of today; TTL two days; only where
                             there is a budget
    p:{t:T}:index    zset    generation ids, score 0, so in order of time; entries whose record is gone are
                             removed by the listing that meets them
    p:{t:T}:dead     zset    "<generation>:<endpoint>", score 0: deliveries that nobody tries any more; bounded

One thread, tag `{th:…}`, a hash of tenant and name (broker.threads); it holds hints, too:
    p:{th:H}:line    zset    generations that have not ended, in the order in which they run; score = ms of the server's
                             clock when they joined, higher than all before. Entries that have ended are removed by who
                             ends or meets them
    p:{th:H}:all     zset    the same and those before them, up to 500; TTL two days and a log's time after the last
                             submit, and a log's time after the last end

The queue, tag `{queue}` (broker.queue); it holds hints, never leases:
    p:{queue}:ready:interactive, p:{queue}:ready:batch
                     zset    hints that wait for a worker; score = fair-queueing start tag
    p:{queue}:later  zset    hints in flight or delayed; score = when to look again, ms of the server's clock
    p:{queue}:tags   hash    "<class>:<tenant>" -> finish tag of the tenant's last hint in that class
    p:{queue}:clock  hash    virtual time of each class, and the turn between the classes
    p:{queue}:sweeper string whose turn it is to look through everything; TTL of one turn
    p:{queue}:totals hash    counters over all processes, for /metrics; worker writes, API reads
    p:{queue}:hooks:NAME
                     zset    generations whose end an endpoint is to be told; score = next try, or until when somebody
                             is at it, ms of the server's clock (broker.webhooks)
    p:{queue}:wake   list    one token a hint that a sleeping worker should fetch
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix."""

    prefix: str = "lg"

    def of(self, generation: str) -> list[str]:
        """Record, log and request: what most scripts of a generation take."""
        return [self.record(generation), self.log(generation), self.request(generation)]

    def record(self, generation: str) -> str:
        return f"{self.prefix}:{{{generation}}}:record"

    def log(self, generation: str) -> str:
        return f"{self.prefix}:{{{generation}}}:log"

    def request(self, generation: str) -> str:
        return f"{self.prefix}:{{{generation}}}:request"

    def viewers(self, generation: str) -> str:
        return f"{self.prefix}:{{{generation}}}:viewers"

    def marker(self, number: int) -> str:
        return f"{self.prefix}:{{m{number}}}:marker"

    def live(self, generation: str) -> str:
        return f"{self.prefix}:{{{generation}}}:live"

    def throttle(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:throttle"

    def running(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:running"

    def calls(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:calls"

    def probes(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:probes"

    def waiting(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:waiting"

    def asked(self, provider: str) -> str:
        return f"{self.prefix}:{{p:{provider}}}:asked"

    def records_pattern(self) -> str:
        """For SCAN: the records of all generations."""
        return f"{self.prefix}:{{gen_*}}:record"

    def indexes_pattern(self) -> str:
        """For SCAN: the indexes of all tenants."""
        return f"{self.prefix}:{{t:*}}:index"

    def thread(self, tenant: str, thread: str) -> list[str]:
        """Line and all generations of a thread."""
        tag = sha256(f"{tenant}\0{thread}".encode()).hexdigest()[:32]
        return [f"{self.prefix}:{{th:{tag}}}:line", f"{self.prefix}:{{th:{tag}}}:all"]

    def thread_of_line(self, line: str) -> list[str]:
        """The same, of a line by its key."""
        return [line, line.removesuffix("line") + "all"]

    def lines_pattern(self) -> str:
        """For SCAN: the lines of all threads."""
        return f"{self.prefix}:{{th:*}}:line"

    def sweeper(self) -> str:
        return f"{self.prefix}:{{queue}}:sweeper"

    def generation_of_record(self, key: str) -> str:
        """The inverse of `record`."""
        return key[len(self.prefix) + 2 : -len("}:record")]

    def idempotency(self, tenant: str, key: str) -> str:
        return f"{self.prefix}:{{t:{_tag(tenant)}}}:key:{sha256(key.encode()).hexdigest()}"

    def index(self, tenant: str) -> str:
        return f"{self.prefix}:{{t:{_tag(tenant)}}}:index"

    def spent(self, tenant: str) -> str:
        return f"{self.prefix}:{{t:{_tag(tenant)}}}:spent"

    def ready(self, priority: str) -> str:
        return f"{self.prefix}:{{queue}}:ready:{priority}"

    def later(self) -> str:
        return f"{self.prefix}:{{queue}}:later"

    def tags(self) -> str:
        return f"{self.prefix}:{{queue}}:tags"

    def clock(self) -> str:
        return f"{self.prefix}:{{queue}}:clock"

    def totals(self) -> str:
        return f"{self.prefix}:{{queue}}:totals"

    def deliveries(self, endpoint: str) -> str:
        return f"{self.prefix}:{{queue}}:hooks:{endpoint}"

    def dead(self, tenant: str) -> str:
        return f"{self.prefix}:{{t:{_tag(tenant)}}}:dead"

    def wake(self) -> str:
        return f"{self.prefix}:{{queue}}:wake"


def _tag(name: str) -> str:
    """Names from outside are hashed where they could hold a brace."""
    return name if name.isalnum() else sha256(name.encode()).hexdigest()[:32]
