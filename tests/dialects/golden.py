"""The wire of every named log in both OpenAI dialects, as files: `python -m tests.dialects.golden` writes them anew.

Look at the difference before you keep it: clients have stored `sequence_number`s of what was sent before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api.dialects.chat_chunks import ChunkStream
from api.dialects.responses_events import ResponseStream
from tests.dialects.logs import NAMED, chat_subject, subject
from tests.dialects.test_chat_model import behind_the_reset
from tests.dialects.test_responses_model import rest_of, seen_by

HERE: Final = Path(__file__).parent / "golden"


def pages() -> Iterator[tuple[Path, bytes]]:
    """Every file and what should be in it."""
    for name, entries in NAMED.items():
        origin = seen_by(entries).origin
        stream = ResponseStream(subject(background=name != "text"), origin=origin)
        yield HERE / f"responses_{name}.sse", stream.begin() + stream.encode(rest_of(entries, origin))
        chunks = ChunkStream(chat_subject(), include_usage=name == "text")
        yield HERE / f"chat_{name}.sse", chunks.begin() + chunks.encode(behind_the_reset(entries))


def main() -> None:
    for path, body in pages():
        if not path.exists() or path.read_bytes() != body:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(body)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
