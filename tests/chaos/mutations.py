"""Does the chaos suite notice when a rule is gone? `.venv/bin/python -m tests.chaos.mutations [word …]`

Each mutation takes ONE rule out of a copy of the tree, by replacing pieces of text, and lets the chaos suite loose on
the copy, with the faults under which that rule earns its keep. Prints a table: which rule, and which checks saw that
it was gone. Exits 1 when a mutation survives, when the unchanged copy does not pass under the same faults, or when the
text that a mutation replaces is no longer there. With words, only mutations whose names contain one of them. Takes some
minutes; not part of `make test`. (`tests/mutations.py` does the same for the property tests.)

Three rules have a second line behind them, and are taken out together with it, for alone nobody would miss them: a
zombie that is not fenced still has to know how the log ends; the end is respected by the append and by the claim; and a
notification that is missed between reading and subscribing is made up for by the look at quiet logs once a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
COPIED = ("broker", "worker", "api", "cli", "chaos", "pyproject.toml")
#: Seeds that are tried before a mutation counts as survived.
SEEDS = (1, 2, 3)
MINUTES = 0.6
RUN_SECONDS = 400

#: Where, what stands there (once), what stands there then.
Change = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule taken out, and the faults under which that must show."""

    rule: str
    changes: Sequence[Change]
    profile: str
    faults: str


#: What a build does that lets the server number its entries: whatever comes goes to the end.
_RENUMBERED = (
    "  local first = seq_of(last)\n"
    "  id_at = function(i) return string.format('%.0f', first + i + 1) .. '-' .. ARGV[1] end\n"
)

MUTATIONS = (
    Mutation(
        rule="fence: a later claim shuts out every earlier writer (and what does not follow the log's end is refused)",
        changes=[
            (
                "broker/scripts/append.lua",
                "if r[3] == 'deleted' or stored_epoch > epoch or (stored_epoch == epoch and r[2] ~= ARGV[2]) then",
                "if r[3] == 'deleted' then",
            ),
            (
                "broker/scripts/append.lua",
                "if not skip then\n  adopt()\n  if seq_of(last) < seq_of(ARGV[3]) then return {'behind', last} end\n"
                "  return {'diverged', last}\nend\n",
                "if not skip then\n  if count == 0 then return {'appended', last, '0', r[4] or ''} end\n"
                + _RENUMBERED
                + "  skip = 0\nend\n",
            ),
        ],
        profile="single",
        faults="worker_pause,worker_pause,store_held",
    ),
    Mutation(
        rule="duplicate check: an event that is sent again is not stored twice",
        changes=[
            ("broker/scripts/append.lua", "if last == ARGV[3] then\n  skip = 0", "if true then\n  skip = 0"),
            (
                "broker/scripts/append.lua",
                "local expected = seq_of(last)\n",
                _RENUMBERED + "local expected = seq_of(last)\n",
            ),
        ],
        profile="single",
        faults="store_held,store_cut_at,store_sleep",
    ),
    Mutation(
        rule="terminal check: nothing follows the end",
        changes=[
            ("broker/scripts/append.lua", "if TERMINAL[last_field] then return {'closed', last} end", ""),
            ("broker/scripts/claim.lua", "if ENDED[r[4]] then", "if false then"),
        ],
        profile="single",
        faults="store_cut,store_held,store_outage",
    ),
    Mutation(
        rule="cursor check: a position is compared by its whole id",
        changes=[
            (
                "broker/scripts/read.lua",
                "    verdict, most = 'rewound', 0\n",
                "    from = '(' .. from\n",
            )
        ],
        profile="replica",
        faults="promotion,worker_pause,worker_kill",
    ),
    Mutation(
        rule="order: subscribe, then read (and look at quiet logs)",
        changes=[
            (
                "broker/tail.py",
                "                if topic.window.last == before != head:\n",
                "                if False:\n",
            ),
            ("broker/tail.py", "                    await joining.wait()\n", "                    pass\n"),
            (
                "broker/tail.py",
                "            self._lost.put_nowait(channel)\n        topic.viewers += 1",
                "            asyncio.get_running_loop().call_later(1.5, self._lost.put_nowait, channel)\n"
                "        topic.viewers += 1",
            ),
        ],
        profile="single",
        faults="viewers_cut",
    ),
)


def main(words: Sequence[str]) -> int:
    chosen = [each for each in MUTATIONS if not words or any(word in each.rule for word in words)]
    survived = 0
    for mutation in chosen:
        with tempfile.TemporaryDirectory(prefix="legato-mutation-") as folder:
            tree = Path(folder)
            _copy(tree)
            clean = _violations(tree, mutation, SEEDS[0])
            for file, old, new in mutation.changes:
                path = tree / file
                text = path.read_text()
                if text.count(old) != 1:
                    print(f"{mutation.rule}: {file} does not hold {old!r} once", flush=True)
                    return 1
                path.write_text(text.replace(old, new))
            caught: Counter[str] = Counter()
            for seed in SEEDS:
                caught = _violations(tree, mutation, seed)
                if caught:
                    break
        said = ", ".join(f"{check} {count}" for check, count in caught.most_common()) or "SURVIVED"
        if clean:
            said += f"  (and the unchanged tree is not clean: {dict(clean)})"
        survived += not caught or bool(clean)
        print(f"{mutation.rule}\n    seen by: {said}", flush=True)
    return 1 if survived else 0


def _copy(tree: Path) -> None:
    for name in COPIED:
        source = TREE / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def _violations(tree: Path, mutation: Mutation, seed: int) -> Counter[str]:
    """Checks that saw something, and how often."""
    out = tree / "out.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "chaos.command", "--minutes", str(MINUTES), "--seed", str(seed)]
    command += ["--profile", mutation.profile, "--faults", mutation.faults, "--json", str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if not out.exists():
        raise SystemExit(f"the suite itself broke:\n{done.stderr[-3000:]}")
    runs = json.loads(out.read_text())["runs"]
    checks = [violation["check"] for run in runs for violation in run["violations"]]
    return Counter(check for check in checks if check != "complaint")  # a line in a log shows no rule to be gone


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
