# Flower's SuperLink, SuperNode and what they start, with Fedvox installed.
#
#   docker build --file deploy/images/federation.Dockerfile --tag fedvox-federation .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       --volume fedvox-state:/var/lib/fedvox fedvox-federation fedvox-federation --help
# The tag is a version; pass PYTHON_IMAGE=python@sha256:... to pin the base by digest (docs/deploy.md says how to find it).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/images/build.lock deploy/images/federation.lock deploy/images/
# Every file that is installed has its hash in the lock; the lock changes less often than the code.
RUN python -m venv /opt/build && python -m venv /opt/fedvox \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r deploy/images/build.lock \
    && /opt/fedvox/bin/pip install --no-cache-dir --require-hashes -r deploy/images/federation.lock
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
COPY federation federation
COPY compliance compliance
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/fedvox/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="fedvox-federation" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Flower SuperLink and SuperNode for federated fine-tuning"
RUN useradd --uid 10001 --user-group --create-home fedvox && install -d -o 10001 -g 10001 /var/lib/fedvox /etc/fedvox
COPY --from=build /opt/fedvox /opt/fedvox
# All that is ever written lies below /var/lib/fedvox and /tmp, so the root can be read-only.
ENV PATH=/opt/fedvox/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FEDVOX_HOME=/var/lib/fedvox FLWR_HOME=/var/lib/fedvox/flwr MPLCONFIGDIR=/tmp/matplotlib \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/fedvox
CMD ["fedvox-federation", "--help"]
