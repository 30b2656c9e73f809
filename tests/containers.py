"""Run the whole suite on the servers people use: `python -m tests.containers [pytest arguments]`.

One container an image, one pytest run a container. Exits 1 when a run fails, or when there is no Docker engine to
start containers with: a run that did not happen is no success.
"""

from __future__ import annotations

import os
import subprocess
import sys

import docker
from docker.errors import DockerException
from testcontainers.community.redis import RedisContainer

from tests.conftest import REDIS_URL_VARIABLE

IMAGES = ("redis:7.2", "redis:8", "valkey/valkey:8")
#: Appended to the image's own server command: the policies of the embedded server, and DEBUG for tests.
OPTIONS = "--appendonly yes --maxmemory-policy noeviction --enable-debug-command yes"


def main(arguments: list[str]) -> int:
    try:
        engine = docker.from_env()
        try:
            engine.ping()
        finally:
            engine.close()
    except DockerException as problem:
        print(f"no Docker engine, so none of {', '.join(IMAGES)} was tested: {problem}", file=sys.stderr)
        return 1
    failed = [image for image in IMAGES if not passes(image, arguments)]
    if failed:
        print(f"failed on: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"passed on: {', '.join(IMAGES)}")
    return 0


def passes(image: str, arguments: list[str]) -> bool:
    print(f"=== {image}", flush=True)
    with RedisContainer(image).with_command(OPTIONS) as container:
        url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(container.port)}/0"
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments], env={**os.environ, REDIS_URL_VARIABLE: url}, check=False
        )
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
