# memworker as a server, or as a command: slim, without root, on a read-only file system.
#   docker build -t memworker .
#   docker run --read-only --tmpfs /tmp -v memworker-cache:/cache -v "$PWD":/data memworker ingest /data/in.jsonl --db /data/db --table memories
# The server wants a key: see compose.yaml.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY memworker memworker
RUN python -m venv /opt/memworker && /opt/memworker/bin/pip install --no-cache-dir ".[serve,mcp,documents]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/memworker /opt/memworker
# /cache keeps models and what was measured here; /data is where databases and inputs lie.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin memworker \
 && mkdir /cache /data && chown memworker /cache /data
ENV PATH=/opt/memworker/bin:$PATH \
    MEMWORKER_CACHE=/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER memworker
WORKDIR /data
VOLUME ["/cache", "/data"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["memworker"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--precision", "int8"]
