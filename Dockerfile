# syntax=docker/dockerfile:1
# The service: `docker build -t mmrec .`, or compose.yaml. The usual wheels of torch carry CUDA,
# several gigabytes; `--build-arg PIP_EXTRA_INDEX_URL=…` lets pip find others, such as those for CPUs
# alone (docs/scaling-out.md).

ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
# pip reads it; empty it counts as not given
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /source
# The environment has no pip of its own, so that nothing is installed where it runs.
RUN python -m venv --without-pip /opt/mmrec
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data_prep ./data_prep
COPY encoders ./encoders
COPY fusion ./fusion
COPY mmrec ./mmrec
RUN pip --python /opt/mmrec/bin/python install --no-cache-dir --constraint constraints.txt '.[serve,postgres]'

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
