# One image for every role: `legato api` (the default), `legato worker`, or any other command.
#
# Everything that is installed, the build tools too, is pinned by hash in requirements/.

FROM python:3.13-slim AS wheel
WORKDIR /build
COPY requirements/dev.lock requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/dev.lock
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
COPY worker worker
COPY api api
COPY cli cli
COPY chaos chaos
RUN pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

FROM python:3.13-slim AS venv
RUN python -m venv /opt/legato
COPY requirements/run.lock /tmp/run.lock
RUN /opt/legato/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/run.lock
COPY --from=wheel /build/dist /tmp/dist
RUN /opt/legato/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index /tmp/dist/*.whl

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin legato
COPY --from=venv /opt/legato /opt/legato
ENV PATH=/opt/legato/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# Nothing is exposed: this version listens on loopback only (docs/how-to/deploy.md says what to do about it).
# /readyz is the API's; a container that runs something else, or another port, says so itself.
HEALTHCHECK --interval=5s --timeout=6s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8700/readyz', timeout=5)"]
ENTRYPOINT ["legato"]
CMD ["api"]
