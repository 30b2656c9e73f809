"""The documents say what is there: generated pages, names, links, commands, tests."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from broker.settings import Settings
from cli.main import COMMANDS
from docs.generate import OTHERS, pages, variable

ROOT: Final = Path(__file__).parents[2]

#: Directories that hold nothing of ours, for a tree without git.
_NOT_OURS: Final = frozenset({"node_modules", "dist"})

_VARIABLE: Final = re.compile(r"\bLEGATO_[A-Z0-9]+(?:_[A-Z0-9]+)*\b")
_LINK: Final = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_COMMAND: Final = re.compile(r"(?:^|[\s`/])legato ([a-z]+)\b")
_TEST: Final = re.compile(r"`(test_[a-z0-9_]+)`")

#: What belongs to the machines and habits of those who wrote it, and to nobody who reads it. In pieces, so that this
#: file holds none of it.
_FOREIGN: Final = re.compile(
    "|".join(
        [
            re.escape("../" + "shared"),
            r"(?<![\w.*])/" + r"work/",
            *(rf"\b{name}(?:\.md)?\b" for name in ("HARD" + "CASES", "FA" + "CTS", "PE" + "ERS", "PE" + "RF")),
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
            "registry" + r"\.npmjs",
        ]
    )
)


def committed() -> Iterator[Path]:
    """Files that are, or would be, committed."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not _is_foreign(path.relative_to(ROOT))]
    return (path for path in paths if path.is_file() and not path.is_symlink())


def _is_foreign(path: Path) -> bool:
    return any((part.startswith(".") and part != ".ci") or part in _NOT_OURS for part in path.parts)


def texts() -> Iterator[tuple[Path, str]]:
    """Committed text files, with their text."""
    for path in committed():
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue


def documents() -> list[Path]:
    return sorted(path for path in committed() if path.suffix == ".md")


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """The anchors that a document's headings make."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_what_the_code_says() -> None:
    """`python -m docs.generate` would change nothing."""
    assert pages()
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name}: run `python -m docs.generate`"


def test_every_variable_that_a_document_names_exists() -> None:
    known = {variable(name) for name in Settings.model_fields} | set(OTHERS)
    for path, text in texts():
        if path.suffix in {".md", ".yml", ".conf"} or path.name == "Dockerfile":
            unknown = set(_VARIABLE.findall(text)) - known
            assert not unknown, f"{path.relative_to(ROOT)} names {', '.join(sorted(unknown))}"


def test_variables_that_are_no_settings_are_read_where_the_page_says() -> None:
    for name, (where, _) in OTHERS.items():
        assert name in (ROOT / where).read_text()


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_relative_link_leads_somewhere() -> None:
    """To a file that is there, and to a heading that is in it."""
    for path in documents():
        for target in _LINK.findall(prose(path)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            where = f"{path.relative_to(ROOT)} links to {target}"
            assert there.exists(), where
            assert there.is_relative_to(ROOT), where
            if anchor:
                assert anchor in anchors(there), where


def test_the_readme_links_to_every_page() -> None:
    """The decisions by their folder."""
    linked = {target.partition("#")[0] for target in _LINK.findall(prose(ROOT / "README.md"))}
    there = {str(path.relative_to(ROOT)) for path in documents() if path.is_relative_to(ROOT / "docs")}
    missing = {page for page in there if not page.startswith("docs/adr/")} - linked
    assert not missing
    assert "docs/adr/" in linked


def test_every_command_that_a_document_shows_exists() -> None:
    reserved = {"keys"}  # in the protocol's list of what is not there yet
    for path in documents():
        shown = set(_COMMAND.findall(" ".join(re.findall(r"`[^`\n]+`", path.read_text()))))
        shown |= {name for block in _FENCE.finditer(path.read_text()) for name in _in_code(block.group())}
        assert shown - reserved <= set(COMMANDS), path.relative_to(ROOT)


def _in_code(block: str) -> list[str]:
    return [name for line in block.splitlines() for name in re.findall(r"^\$ (?:\.venv/bin/)?legato ([a-z]+)", line)]


def test_every_command_is_in_the_protocol() -> None:
    protocol = (ROOT / "docs/protocol.md").read_text()
    for name in COMMANDS:
        assert f"`legato {name}" in protocol, name


def test_every_test_that_a_document_names_exists() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_[a-z0-9_]+)", path.read_text())
    }
    named = {name for path in documents() for name in _TEST.findall(path.read_text())}
    assert named
    assert named <= there, f"no such tests: {', '.join(sorted(named - there))}"


def test_every_file_of_the_packages_is_on_the_map() -> None:
    """ARCHITECTURE.md names every module, and stays short."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 200
    named = set(re.findall(r"`([a-z_]+)(?:\.py)?`", text))
    for package in ("broker", "worker", "api", "cli"):
        for path in (ROOT / package).glob("*.py"):
            if path.stem != "__init__":
                assert path.stem in named, f"{package}/{path.name}"
    scripts = {path.stem for path in (ROOT / "broker/scripts").glob("*.lua")}
    assert scripts <= set(re.findall(r"\b[a-z]+\b", text.partition("\nScripts: ")[2]))


@pytest.mark.parametrize("name", ["README.md", "docs/protocol.md", "docs/how-to/deploy.md"])
def test_the_loopback_rule_is_told(name: str) -> None:
    """Nobody should find out by a refusal, or think that there are keys."""
    assert "loopback only" in re.sub(r"\s+", " ", (ROOT / name).read_text())


def test_nothing_committed_names_where_it_was_written() -> None:
    for path, text in texts():
        if path.suffix == ".lock":
            continue
        found = _FOREIGN.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()!r}"
