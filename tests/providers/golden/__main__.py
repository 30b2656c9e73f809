"""Writes what is made of every case: `python -m tests.providers.golden`. Look at the difference before you keep it."""

from __future__ import annotations

from tests.providers.golden import made_of_request, made_of_stream, request_cases, stream_cases


def main() -> None:
    made = [made_of_request(wire, case) for wire, case in request_cases()]
    made += [made_of_stream(wire, case) for wire, case in stream_cases()]
    for path, text in made:
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
