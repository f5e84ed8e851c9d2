# syntax=docker/dockerfile:1
# The service: `docker build -t mmrec .`, or compose.yaml. The usual wheels of torch carry CUDA,
# several gigabytes; `--build-arg TORCH_INDEX=URL` names an index with others, such as those for
# CPUs alone (docs/scaling-out.md).

ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=
WORKDIR /source
# The environment has no pip of its own, so that nothing is installed where it runs.
RUN python -m venv --without-pip /opt/mmrec
COPY constraints.txt ./
# First and without what it needs: an index of torch's has little else.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/mmrec/bin/python install --no-deps --constraint constraints.txt \
    ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch torchvision torchaudio
COPY pyproject.toml README.md LICENSE ./
COPY data_prep ./data_prep
COPY encoders ./encoders
COPY fusion ./fusion
COPY mmrec ./mmrec
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/mmrec/bin/python install --constraint constraints.txt '.[serve,postgres]'

FROM python:${PYTHON}
COPY --from=build /opt/mmrec /opt/mmrec
# Whoever it runs as needs no home; what is written for the moment goes to /tmp.
ENV PATH=/opt/mmrec/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["mmrec"]
CMD ["--help"]
