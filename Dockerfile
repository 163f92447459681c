# The image of examples/kubernetes/pretrain.yaml.
#
#   docker build -t megascratch .                                         CUDA, from the default index of pip
#   docker build -t megascratch --build-arg CONSTRAINTS=constraints.txt . torch for the CPU, pinned
#   docker run --rm -v "$PWD:/data" megascratch --help
#
# Stage 1 compiles the wheel; stage 2 has no compiler. A run stops at TERM with a checkpoint, which `docker stop` sends.
FROM python:3.12-slim AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY megascratch megascratch
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG CONSTRAINTS=/dev/null
COPY --from=build /wheels /wheels
COPY constraints.txt /tmp/constraints/constraints.txt
WORKDIR /tmp/constraints
RUN pip install --no-cache-dir --constraint "$CONSTRAINTS" /wheels/*.whl \
    && useradd --create-home --uid 1000 trainer
USER 1000
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["megascratch"]
CMD ["--help"]
