"""`legato submit`: a job from arguments, or from a file that holds the request's body."""

from __future__ import annotations

import sys
from typing import Any, Final
from uuid import uuid4

import click
import orjson
from click.core import ParameterSource

from cli.client import Client, connection_options, json_object
from cli.exits import EXIT_HELP, Exit, Failure, note
from cli.tail import FOLLOW_SECONDS, follow

#: How long to try to submit, and to follow.
_SUBMIT_SECONDS: Final = 10.0

#: Options that make the body, and so make no sense beside one.
_BODY_OPTIONS: Final = frozenset(
    {"prompt", "provider", "model", "system", "max_output_tokens", "options", "recovery", "priority"}
)

_MAX_KEY_CHARACTERS: Final = 255


def check_options(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` pairs. A value is JSON; what is not, and does not look as if meant to be, is a string."""
    options: dict[str, Any] = {}
    for item in values:
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{item!r} is not key=value")
        try:
            options[name] = orjson.loads(text)
        except orjson.JSONDecodeError as exc:
            if text.lstrip()[:1] in ("{", "[", '"'):
                raise click.BadParameter(f"the value of {name} is not JSON: {exc}") from None
            options[name] = text
    return options


def check_key(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """What an HTTP header can carry."""
    if value is not None and not (0 < len(value) <= _MAX_KEY_CHARACTERS and value.isascii() and value.isprintable()):
        raise click.BadParameter(f"has 1 to {_MAX_KEY_CHARACTERS} printable ASCII characters")
    return value


@click.command(epilog=EXIT_HELP)
@click.argument("prompt", required=False)
@click.option("--provider", default="sim", show_default=True, help="Name of a provider the server has.")
@click.option("--model", help="The provider's model; may be left out for sim.")
@click.option("--system", help="A system message before the prompt.")
@click.option("--max-output-tokens", type=click.IntRange(min=1), help="Longest answer.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=check_options,
    help="One of provider_options; VALUE is JSON, or a bare string. Repeatable.",
)
@click.option(
    "--recovery", type=click.Choice(["restart", "continue", "fail"]), help="When the worker is lost. [default: restart]"
)
@click.option("--priority", type=click.Choice(["interactive", "batch"]), help="[default: interactive]")
@click.option("--body", metavar="FILE", type=click.File("rb"), help="The whole request as JSON; - is stdin.")
@click.option(
    "--idempotency-key", metavar="KEY", callback=check_key, help="The same key and request give the same generation."
)
@click.option("--follow", "-f", "following", is_flag=True, help="Print the text as it comes, as `legato tail` does.")
@click.option("--whole", is_flag=True, help="With --follow: print exactly the final text, once, at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer; with --follow every event.")
@connection_options(_SUBMIT_SECONDS)
@click.pass_context
def submit(
    context: click.Context,
    /,
    prompt: str | None,
    body: Any,
    idempotency_key: str | None,
    following: bool,
    whole: bool,
    as_json: bool,
    url: str,
    timeout: float,
    **fields: Any,
) -> None:
    """Submit a job and print its id. PROMPT is the user's message; - reads it from stdin.

    Safe to interrupt and repeat with --idempotency-key; without one, the tries of one call share a key of their own.
    With --follow, --timeout counts anew for each cut and is 60 s unless it is given.
    """
    if whole and (as_json or not following):
        raise click.UsageError("--whole goes with --follow and without --json")
    raw = _file(context, prompt, body) if body is not None else _body(prompt, **fields)
    key = idempotency_key or f"cli-{uuid4()}"
    with Client(url, timeout_seconds=timeout) as client:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        try:
            response = client.call("POST", "/v1/generations", body=raw, headers=headers)
        except KeyboardInterrupt:
            note(f"whether the job was stored is not known; to ask again: --idempotency-key {key}")
            raise
        answer = json_object(response)
        generation = answer.get("id")
        if not isinstance(generation, str):
            raise Failure(Exit.UNAVAILABLE, f"{client.url} answers, but not as Legato does")
        if response.headers.get("idempotent-replayed") == "true":
            note(f"{generation} was submitted with this key before")
        if not following:
            click.echo(orjson.dumps(answer) if as_json else generation)
            return
        note(generation)
        if context.get_parameter_source("timeout") is ParameterSource.DEFAULT:
            client.timeout_seconds = FOLLOW_SECONDS
        code = follow(client, generation, start=None, whole=whole, as_json=as_json)
    raise click.exceptions.Exit(code)


def _file(context: click.Context, prompt: str | None, body: Any) -> bytes:
    given = [name for name in _BODY_OPTIONS if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if prompt is not None or given:
        raise click.UsageError("--body is the whole request: no prompt and none of its options beside it")
    raw = body.read()
    assert isinstance(raw, bytes)  # noqa: S101 - it was opened so
    return raw


def _body(prompt: str | None, **fields: Any) -> bytes:
    if prompt is None:
        raise click.UsageError("a prompt is missing (- reads it from stdin; --body takes a whole request)")
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"stdin is not UTF-8 (byte {exc.start})") from None
    model = fields["model"] or ("sim" if fields["provider"] == "sim" else None)
    if model is None:
        raise click.UsageError(f"--provider {fields['provider']} needs --model")
    messages = [{"role": "system", "content": fields["system"]}] if fields["system"] is not None else []
    messages.append({"role": "user", "content": prompt})
    wanted = {
        "provider": fields["provider"],
        "model": model,
        "messages": messages,
        "max_output_tokens": fields["max_output_tokens"],
        "provider_options": fields["options"] or None,
        "recovery": fields["recovery"],
        "priority": fields["priority"],
    }
    try:
        return orjson.dumps({name: value for name, value in wanted.items() if value is not None})
    except (orjson.JSONEncodeError, TypeError):
        raise click.UsageError("the prompt is not UTF-8") from None
