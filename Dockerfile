# quaybridge with its command line. As it is, the image serves nothing: give it services by QUAYBRIDGE_SERVICES__…
# variables, by a file named in QUAYBRIDGE_CONFIG, or by flags; and build your own image on it to add a bridge's needs.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}

# Debian refuses to let pip change its own Python: an environment of our own works on every base image.
RUN python3 -m venv /opt/quaybridge
ENV PATH=/opt/quaybridge/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /usr/src/quaybridge
# The dependencies first: they change seldom, and this layer is then kept.
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /tmp/requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && useradd --uid 10001 --create-home quaybridge

USER quaybridge
WORKDIR /home/quaybridge

# The node touches this file every few seconds while it is connected and serving: see quaybridge/heartbeat.py.
ENV QUAYBRIDGE_HEALTH_FILE=/tmp/quaybridge.health
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["sh", "-c", "test -n \"$(find \"$QUAYBRIDGE_HEALTH_FILE\" -mmin -0.5)\""]

ENTRYPOINT ["quaybridge"]
CMD ["worker"]
