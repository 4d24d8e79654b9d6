# Ray head, Ray workers and jobs. CUDA comes with torch's wheels; the host has the driver and the container toolkit.
#
#   docker build --file deploy/images/training.Dockerfile --tag fedvox-training .
#   docker run --rm --read-only --tmpfs /tmp --tmpfs /home/fedvox --shm-size 8g --cap-drop ALL \
#       --security-opt no-new-privileges --gpus all fedvox-training fedvox doctor
# The tag is a version; pass PYTHON_IMAGE=python@sha256:... to pin the base by digest (docs/deploy.md says how to find it).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/images/build.lock deploy/images/training.lock deploy/images/
# Every file that is installed has its hash in the lock; the lock changes less often than the code.
RUN python -m venv /opt/build && python -m venv /opt/fedvox \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r deploy/images/build.lock \
    && /opt/fedvox/bin/pip install --no-cache-dir --require-hashes -r deploy/images/training.lock
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
COPY federation federation
COPY compliance compliance
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/fedvox/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="fedvox-training" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Ray nodes and jobs for pretraining, fine-tuning and prediction"
# KubeRay's health probes call wget in a shell, inside the container.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home fedvox && install -d -o 10001 -g 10001 /opt/jobs /mnt/cache
COPY --from=build /opt/fedvox /opt/fedvox
COPY jobs /opt/jobs/jobs
ENV PATH=/opt/fedvox/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FEDVOX_HOME=/tmp/fedvox MPLCONFIGDIR=/tmp/matplotlib \
    RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=60 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
# Jobs name their configurations relative to here, as in a checkout.
WORKDIR /opt/jobs
CMD ["fedvox", "--help"]
