# The compliance questionnaire for an office PC or a bastion: no torch, no Ray, no network.
#
#   docker build --file deploy/images/compliance.Dockerfile --tag fedvox-compliance .
#   docker run --rm --interactive --tty --read-only --cap-drop ALL --security-opt no-new-privileges --network none \
#       --user "$(id -u):$(id -g)" --volume "$PWD:/work" fedvox-compliance new clinic-a
# The tag is a version; pass PYTHON_IMAGE=python@sha256:... to pin the base by digest (docs/deploy.md says how to find it).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/images/build.lock deploy/images/compliance.lock deploy/images/
# Every file that is installed has its hash in the lock; the lock changes less often than the code.
RUN python -m venv /opt/build && python -m venv /opt/fedvox \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r deploy/images/build.lock \
    && /opt/fedvox/bin/pip install --no-cache-dir --require-hashes -r deploy/images/compliance.lock
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
COPY federation federation
COPY compliance compliance
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/fedvox/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="fedvox-compliance" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Compliance questionnaire, score and attestation"
RUN useradd --uid 10001 --user-group --create-home fedvox && install -d -o 10001 -g 10001 /work
COPY --from=build /opt/fedvox /opt/fedvox
ENV PATH=/opt/fedvox/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["fedvox-compliance"]
CMD ["--help"]
