"""The Lua scripts, one verb a file, and how they are sent.

A script is addressed by the SHA-1 of its text; a server that does not know it (restart, `SCRIPT FLUSH`, a replica
promoted) answers NOSCRIPT and has written nothing, so it is sent again whole, which also loads it.
Every file starts with `#!lua`: then a read-only server, and a full one where the script has no `allow-oom`, refuses it
before it starts. Those that only read (`no-writes`) ask for the server's role themselves: no verdict ever comes from
a replica. Scripts validate before their first write and publish last.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """One script's name, text and address."""

    name: str
    source: bytes
    sha: bytes


def load(name: str, *, flags: str = "") -> Script:
    """Read `<name>.lua`; `flags` replaces the flags of its first line, which makes it another script."""
    source = files(__name__).joinpath(f"{name}.lua").read_bytes()
    if flags:
        _, _, rest = source.partition(b"\n")
        source = b"#!lua flags=" + flags.encode() + b"\n" + rest
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())


APPEND = load("append")
#: The same, for a batch that ends in a terminal event: a full store can still end what it holds.
APPEND_TERMINAL = load("append", flags="allow-oom")
EXTEND = load("extend")
READ = load("read")
SEAL = load("seal")
CLAIM = load("claim")
RENEW = load("renew")
RELEASE = load("release")
PAUSE = load("pause")
RESULTS = load("results")
REBUILD = load("rebuild")
MARKER = load("marker")
PRESENCE = load("presence")
CREATE = load("create")
CONFIRM = load("confirm")
RECORD = load("record")
CANCEL = load("cancel")
DELETE = load("delete")
SPEND = load("spend")
RESERVE = load("reserve")
UNRESERVE = load("unreserve")
ENQUEUE = load("enqueue")
TAKE = load("take")
LATER = load("later")
DROP = load("drop")
WAITING = load("waiting")
ADMIT = load("admit")
SETTLE = load("settle")
KEEP = load("keep")
PROVIDER = load("provider")
JOIN = load("join")
LEAVE = load("leave")
THREAD = load("thread")
STANDING = load("standing")
BEGIN = load("begin")
WITHDRAW = load("withdraw")
OWE = load("owe")
DUE = load("due")
HOOK = load("hook")
BURY = load("bury")
