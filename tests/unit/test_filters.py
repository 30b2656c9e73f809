"""Checks and transforms: what each finds, that chunks make no difference, and that foreign ones can do no harm."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.generation import Filter
from tests.property.schedules import schedules
from worker.filters import registry
from worker.filters.base import FilterDefect, Rejected, Transform, Validator
from worker.filters.finder import KINDS
from worker.filters.forbid import Forbid
from worker.filters.json import JsonAnswer
from worker.filters.pipeline import Pipeline
from worker.filters.redact import Redact
from worker.filters.registry import build_pipeline, known_transforms, known_validators

GUIDE: Final = Path(__file__).parents[2] / "docs/how-to/check-and-transform.md"

PEM: Final = "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,AB\n\nMIIE\n-----END RSA PRIVATE KEY-----"
FOUND: Final = [
    ("email", "joe.b+x@mail.example.co.uk"),
    ("email", "jörg@über.de"),
    ("card", "4111 1111 1111 1111"),
    ("card", "4111-1111-1111-1111"),
    ("phone", "+49 (171) 123-45678"),
    ("phone", "0171 1234567"),
    ("phone", "(555) 123-4567"),
    ("secret", "sk-proj-abcDEF1234567890abcdef"),
    ("secret", "ghp_0123456789abcdefghijABCD"),
    ("secret", "AKIAABCDEFGHIJKLMNOP"),
    ("secret", "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abcdefghij"),
    ("secret", PEM),
]


def whole(one: Transform | Validator | Pipeline, text: str, *, size: int = 1) -> str:
    """What comes of `text` in pieces of `size` characters."""
    return "".join([one.feed(text[at : at + size]) for at in range(0, len(text), size)]) + one.end()


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(("kind", "text"), FOUND)
def test_redact_replaces_what_it_is_told_to_find(kind: str, text: str, size: int) -> None:
    assert whole(Redact(patterns=[kind], replacement="#"), f"say {text}, and on", size=size) == "say #, and on"
    assert whole(Redact(replacement="#"), f"联系{text}", size=size) == "联系#"
    assert whole(Redact(replacement="#"), text, size=size) == "#"


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        "on 2026-11-20 at 10:30",
        "3.14159265358979",
        "10.0.0.1",
        "a@b",
        "1,000,000",
        "12345678901234567890123",
        "sk-short",
    ],
)
def test_redact_leaves_what_only_looks_alike(text: str, size: int) -> None:
    assert whole(Redact(), f"so {text} it is", size=size) == f"so {text} it is"


@pytest.mark.parametrize("size", [1, 10_000])
def test_words_are_found_whole_and_in_any_case(size: int) -> None:
    redact = Redact(words=["new york", "new", "heron", "秘密", "c++"], replacement="#")
    text = "New York, newer NEW, heron's heronry, c++ 这是秘密文件 Heron"
    assert whole(redact, text, size=size) == "#, newer #, #'s heronry, # 这是#文件 #"


def test_redact_keeps_back_no_more_than_what_could_become_a_find() -> None:
    redact = Redact(words=["heron"], replacement="#")
    assert redact.feed("a bird, the ") == "a bird, the "
    assert not redact.pending()
    assert redact.feed("her") == ""
    assert redact.pending()
    assert redact.feed("b and heron") == "herb and "  # `heronry` is another word
    assert redact.feed("s ") == "herons "
    endless = Redact()
    assert sum(len(endless.feed("x")) for _ in range(10_000)) > 9_600


@schedules(200)
@given(
    text=st.lists(
        st.sampled_from(
            [*(text for _, text in FOUND), "new york", "new", "a@b", "+49", "1", "-", ".", " ", "é", "界", "x"]
        ),
        max_size=12,
    ).map("".join),
    size=st.integers(1, 40),
)
@example(text="4111-1111-1111-11114111-1111-1111-1111joe.b+x@mail.example.co.uk", size=1)  # a card in an address
def test_chunks_make_no_difference_to_what_is_found(text: str, size: int) -> None:
    def redact() -> Redact:
        return Redact(patterns=list(KINDS), words=["new york", "new", "york x"])

    assert whole(redact(), text, size=size) == whole(redact(), text, size=max(1, len(text)))


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    ("options", "text"), [({"words": ["heron"]}, "Heron"), ({"patterns": ["email"]}, "a.b@example.org")]
)
def test_forbid_shows_nothing_of_what_is_forbidden(options: dict[str, Any], text: str, size: int) -> None:
    forbid = Forbid(**options)
    answer = f"it is {text}, yes"
    shown: list[str] = []
    with pytest.raises(Rejected) as caught:
        shown.extend(forbid.feed(answer[at : at + size]) for at in range(0, len(answer), size))
    assert "it is ".startswith("".join(shown))
    assert text not in str(caught.value)
    assert whole(Forbid(**options), "it is fine", size=size) == "it is fine"


def test_forbid_judges_the_last_word_too() -> None:
    forbid = Forbid(words=["heron"])
    assert forbid.feed("the heron") == "the "
    with pytest.raises(Rejected):
        forbid.end()


SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}, "pattern": {"type": "string"}},
    "required": ["name"],
    "$defs": {"name": {"type": "string", "maxLength": 3}},
}


@pytest.mark.parametrize("size", [1, 10_000])
def test_json_passes_text_on_and_judges_at_the_end(size: int) -> None:
    assert whole(JsonAnswer(schema=SCHEMA), ' {"name": "joe"}\n', size=size) == ' {"name": "joe"}\n'
    shown = JsonAnswer()
    assert shown.feed("not json") == "not json"
    with pytest.raises(Rejected, match="line 1, column"):
        shown.end()


def test_json_with_hold_shows_nothing_before_it_was_judged() -> None:
    good, bad = JsonAnswer(hold=True), JsonAnswer(hold=True)
    assert good.feed("[1") == good.feed("]") == bad.feed("[1") == ""
    assert good.end() == "[1]"
    with pytest.raises(Rejected):
        bad.end()


def test_json_names_the_rule_and_quotes_nothing() -> None:
    with pytest.raises(Rejected, match=r"properties/name/maxLength") as caught:
        whole(JsonAnswer(schema=SCHEMA), '{"name": "private"}')
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strange"},
        {"properties": {"a": {"pattern": "(a+)+$"}}},
        {"anyOf": [{"patternProperties": {}}]},
        {"$ref": "https://example.org/schema"},
        {"$dynamicRef": "#a"},
    ],
)
def test_a_schema_that_is_wrong_or_could_hang_or_fetch_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"filter 'json': schema: "):
        build_pipeline([], [Filter(name="json", options={"schema": schema})])


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            {
                "$defs": {"0": {"type": "integer"}}
                | {str(n): {"allOf": [{"$ref": f"#/$defs/{n - 1}"}] * 2} for n in range(1, 60)},
                "$ref": "#/$defs/59",
            },
            1,
        ),
        ({"$ref": "#"}, 1),
        ({"uniqueItems": True}, [{"a": n} for n in range(50_000)]),
    ],
)
def test_the_work_of_a_check_has_a_limit(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(Rejected, match="too much to check"):
        whole(JsonAnswer(schema=schema), orjson.dumps(value).decode(), size=1 << 20)


class Upper:
    def feed(self, text: str) -> str:
        return text.upper()

    def end(self) -> str:
        return "!"

    def pending(self) -> bool:
        return False


class Late:
    """Releases one chunk late."""

    def __init__(self) -> None:
        self.kept = ""

    def feed(self, text: str) -> str:
        kept, self.kept = self.kept, text
        return kept

    def end(self) -> str:
        return self.kept


def test_text_goes_through_transforms_then_validators_in_their_order() -> None:
    pipeline = build_pipeline(
        [Filter(name="redact", options={"words": ["b"], "replacement": "heron"})],
        [Filter(name="forbid", options={"words": ["heron"]})],
    )
    assert pipeline is not None
    with pytest.raises(Rejected):
        whole(pipeline, "a b c")
    assert whole(Pipeline([Upper(), Upper()], [Late()], names=["a", "b", "c"]), "abc") == "ABC!!"


def test_without_filters_there_is_no_pipeline() -> None:
    assert build_pipeline([], []) is None


def test_held_tells_whether_something_has_not_come_out_yet() -> None:
    judged = Pipeline([Upper()], [Late()], names=["upper", "late"])
    assert not judged.held
    assert (judged.feed("a"), judged.held) == ("", True)
    assert (judged.feed("b"), judged.held) == ("A", True)
    assert (judged.end(), judged.held) == ("B!", False)
    prompt = Pipeline([Upper()], [], names=["upper"])
    assert (prompt.feed("a"), prompt.held) == ("A", False)
    silent = Pipeline([Late()], [], names=["late"])  # does not say what it keeps
    assert not silent.held
    assert (silent.feed("a"), silent.held) == ("", True)


class Bad(Late):
    """Does what it is told to do wrong."""

    def __init__(self, wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def feed(self, text: str) -> str:
        if isinstance(self.wrong, Exception):
            raise self.wrong
        found: str = self.wrong
        return found


@pytest.mark.parametrize("wrong", [RuntimeError("secret text"), ValueError("secret text"), None, 3, b"x"])
@pytest.mark.parametrize("kind", ["transform", "validator"])
def test_what_a_filter_may_not_do_names_it_and_quotes_nothing(wrong: Any, kind: str) -> None:
    bad = [Bad(wrong)]
    pipeline = Pipeline(bad, [], names=["bad"]) if kind == "transform" else Pipeline([], bad, names=["bad"])
    with pytest.raises(FilterDefect, match="'bad'") as caught:
        pipeline.feed("secret text")
    assert "secret text" not in str(caught.value)
    if isinstance(wrong, Exception):
        assert caught.value.__suppress_context__
        assert "test_filters.py:" in str(caught.value)


@pytest.mark.parametrize("released", ["X", "abcd", "b", "ab\u0301"])
def test_a_validator_cannot_change_text(released: str) -> None:
    with pytest.raises(FilterDefect, match="'bad': it released other text"):
        Pipeline([], [Bad(released)], names=["bad"]).feed("abc")


def test_a_validator_cannot_swallow_text() -> None:
    pipeline = Pipeline([], [Bad("")], names=["bad"])
    assert pipeline.feed("abc") == ""
    with pytest.raises(FilterDefect, match="not released everything"):
        pipeline.end()


def test_a_validator_may_release_across_chunks() -> None:
    bad = Bad("")
    pipeline = Pipeline([], [bad], names=["slow"])
    assert pipeline.feed("abc") == ""
    bad.wrong = "abcd"
    assert pipeline.feed("def") == "abcd"
    bad.wrong, bad.kept = "e", "fg"
    assert pipeline.feed("g") == "e"
    assert (pipeline.end(), pipeline.held) == ("fg", False)


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (Filter(name="redact", options={"patterns": ["iban"]}), "transform", "filter 'redact': no pattern 'iban'"),
        (Filter(name="redact", options={"colour": "red"}), "transform", "filter 'redact'.*colour"),
        (Filter(name="redact", options={"words": "heron"}), "transform", "words is not a list"),
        (Filter(name="redact", options={"words": [" "]}), "transform", "a word is empty"),
        (Filter(name="redact", options={"replacement": 3}), "transform", "replacement is not a string"),
        (Filter(name="forbid"), "validator", "filter 'forbid': neither words nor patterns"),
        (Filter(name="forbid", options={"words": ["x"] * 1001}), "validator", "more than 1000 words"),
        (Filter(name="json", options={"hold": "yes"}), "validator", "filter 'json': hold is"),
        (Filter(name="json", options={"schema": []}), "validator", "filter 'json': schema is"),
    ],
)
def test_wrong_options_are_reported_with_the_name_of_the_filter(asked: Filter, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_pipeline([asked] if kind == "transform" else [], [asked] if kind == "validator" else [])


def test_an_unknown_name_is_reported_with_the_names_there_are() -> None:
    with pytest.raises(LookupError, match=r"no transform 'forbid'; there are redact"):
        build_pipeline([Filter(name="forbid")], [])
    with pytest.raises(LookupError, match=r"no validator 'nothing'; there are forbid, json"):
        build_pipeline([], [Filter(name="nothing")])


def block(language: str) -> str:
    """The guide's block of code in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found.group(1)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The guide's package, as an installer would have put it on the path."""
    project = tomllib.loads(block("toml"))["project"]
    (tmp_path / "house_filters.py").write_text(block("python"))
    (tmp_path / "broken_filters.py").write_text("raise OSError('no such device')")
    info = tmp_path / "house_filters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    project["entry-points"]["legato.validators"] |= {"json": "house_filters:AtMost", "broken": "broken_filters:Nothing"}
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget()
    yield tmp_path
    _forget()
    for name in ("house_filters", "broken_filters"):
        sys.modules.pop(name, None)


def _forget() -> None:
    importlib.invalidate_caches()
    registry.installed.cache_clear()
    registry._factory.cache_clear()


@pytest.mark.usefixtures("installed")
def test_the_filters_of_the_guide_work_as_an_installed_package() -> None:
    assert known_transforms() == ["redact", "shout"]
    assert known_validators() == ["at_most", "broken", "forbid", "json"]
    shout = [Filter(name="shout", options={"mark": "?"})]
    at_most = [Filter(name="at_most", options={"characters": 5})]

    def pipeline() -> Pipeline:
        built = build_pipeline(shout, at_most)
        assert built is not None
        return built

    first = pipeline()
    assert first.feed("one.\nt") == "ONE?\n"
    assert first.held
    assert first.end() == "T"
    assert whole(pipeline(), "one.\ntwo.") == "ONE?\nTWO?"
    with pytest.raises(Rejected, match="more than 5"):
        whole(pipeline(), "a long line.\n")
    with pytest.raises(ValueError, match="'at_most': characters is less than 1"):
        build_pipeline([], [Filter(name="at_most", options={"characters": 0})])


def test_a_package_is_imported_when_its_filter_is_asked_for(installed: Path) -> None:
    assert build_pipeline([Filter(name="redact")], [])
    assert "house_filters" not in sys.modules
    assert build_pipeline([Filter(name="shout")], [])
    assert sys.modules["house_filters"].__file__ == str(installed / "house_filters.py")


@pytest.mark.usefixtures("installed")
def test_built_in_names_cannot_be_taken_and_a_broken_package_is_a_defect_of_its_own() -> None:
    pipeline = build_pipeline([], [Filter(name="json")])
    assert pipeline is not None
    assert whole(pipeline, "[1]") == "[1]"
    with pytest.raises(FilterDefect, match="'broken': OSError while it was imported"):
        build_pipeline([], [Filter(name="broken")])


def test_the_guide_names_what_is_built_in() -> None:
    text = GUIDE.read_text()
    for name in (*KINDS, *known_transforms(), *known_validators()):
        assert f"| `{name}` |" in text
    asked = orjson.loads(block("json"))
    validators = [Filter(name=given["name"], options=given["options"]) for given in asked["validators"]]
    pipeline = build_pipeline([Filter(name=name) for name in asked["transforms"]], validators)
    assert pipeline is not None
    assert whole(pipeline, "write to a@example.org") == "write to [redacted]"
