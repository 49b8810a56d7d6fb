# syntax=docker/dockerfile:1
# Build:  make image              CUDA machine, default torch
#         docker build --build-arg TORCH_SPEC=torch==2.10.0 .        for older NVIDIA drivers (CUDA 12.8 wheels)
# Run:    docker run --rm --gpus all -v "$PWD:/data" -v cache:/cache earthpress:dev run out/zurich
# Works with --read-only --tmpfs /tmp --cap-drop all. For a release, pin BASE_IMAGE by digest.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# --- stages that leave nothing behind: the installer and the project's wheel ---
FROM ${BASE_IMAGE} AS uv
ARG UV_VERSION=0.13.8
RUN pip install --no-cache-dir "uv==${UV_VERSION}" && cp "$(command -v uv)" /uv

FROM ${BASE_IMAGE} AS wheel
COPY --from=uv /uv /usr/local/bin/uv
WORKDIR /src
COPY pyproject.toml README.md ./
COPY configs ./configs
COPY pipeline ./pipeline
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --out-dir /dist

# --- the image: layers in order of size and of how seldom they change ---
FROM ${BASE_IMAGE} AS runtime
ARG REVISION=
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="earthpress" \
      org.opencontainers.image.description="From an area and dates to int8 embeddings and maps" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# torch.compile needs a C and C++ compiler at run time; tini reaps children and passes signals on.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ libc6-dev tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 app \
 && useradd --uid 10001 --gid 10001 --create-home app \
 && install -d -o app -g app /cache /data

ENV UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH
COPY --from=uv /uv /usr/local/bin/uv

# torch alone, with the CUDA libraries of its wheels: the largest layer
ARG TORCH_SPEC=torch==2.13.0
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --quiet --python python3.11 /opt/venv \
 && uv pip install "${TORCH_SPEC}"

# everything else, every file checked against the lock
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=requirements.lock,target=/lock/requirements.lock \
    uv pip install --require-hashes --no-deps -r /lock/requirements.lock

# the project itself: a change of source rebuilds only this
COPY --from=wheel /dist /opt/dist
RUN uv pip install --no-deps /opt/dist/*.whl && uv pip check

ENV PYTHONUNBUFFERED=1 \
    EARTHPRESS_COMMIT=${REVISION} \
    USER=app \
    HF_HOME=/cache/hf \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton
USER 10001:10001
WORKDIR /data
VOLUME ["/cache"]
STOPSIGNAL SIGTERM
# A batch job: its exit code and its receipts say how it went.
HEALTHCHECK NONE
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "earthpress"]
CMD ["--help"]
