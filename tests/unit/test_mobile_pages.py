"""The readers of the Android and the iOS page are one: `make test-android` runs the first, this compares the second."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.support.stack import ROOT

KOTLIN: Final = re.findall(r"```kotlin\n(.*?)```", (ROOT / "docs/how-to/android.md").read_text(), re.DOTALL)
SWIFT: Final = re.findall(r"```swift\n(.*?)```", (ROOT / "docs/how-to/ios.md").read_text(), re.DOTALL)

#: What of the protocol a reader acts on.
WORDS: Final = {"delta", "reset", "snapshot", "completed", "cancelled", "failed", "gone", "kind", "text", "message"}
LINES: Final = {"event: ", "id: ", "retry: ", "data: "}
ASKED: Final = {"text/event-stream", "Last-Event-ID", "from", "snapshot", "Retry-After"}


@pytest.mark.parametrize("code", [KOTLIN[0], SWIFT[0]], ids=["kotlin", "swift"])
def test_a_reader_knows_everything_that_a_client_must(code: str) -> None:
    quoted = set(re.findall(r'"([^"\n]*)"', code))
    assert quoted >= WORDS | LINES | ASKED


def test_both_readers_act_on_the_same_statuses_and_times() -> None:
    def numbers(code: str) -> set[str]:
        plain = re.sub(r"//.*|/\*\*.*?\*/", "", code)
        return {number.replace("_", "").rstrip("L") for number in re.findall(r"\b\d[\d_]{2,}L?\b|\b45\b|\b6\b", plain)}

    kotlin, swift = numbers(KOTLIN[0]), numbers(SWIFT[0])
    assert swift - {"1000000"} == kotlin  # nanoseconds of a millisecond
    assert kotlin >= {"200", "204", "408", "429", "500", "599", "30000", "1000", "45"}


def test_each_page_holds_one_reader() -> None:
    assert len(KOTLIN) == 1
    assert len([code for code in SWIFT if "class GenerationReader" in code]) == 1
