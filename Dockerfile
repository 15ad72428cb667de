# Two images from one file:
#   docker build --target pylb -t pylb:0.2.0.dev0 .
#   docker build --target phonehome -t pylb-phonehome:0.2.0.dev0 .
# deploy/README.md says how to run them. tests/system/test_image.py builds and runs both, on a base of Debian's own packages.

# Whoever has a mirror, or a base image of their own, names it with --build-arg. PYLB_BASE also builds the environment that is
# copied into it: a virtual environment works only with the interpreter it was made with.
ARG PYLB_BASE=python:3.13-slim
ARG PHONEHOME_BASE=python:3.13-alpine

FROM ${PYLB_BASE} AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY pylb pylb
COPY phonehome phonehome
COPY deploy deploy
COPY docs/pylb.1 docs/pylb.1
# The exact versions that were tested, with their hashes; then pylb itself, which needs nothing more.
RUN python3 -m venv /opt/pylb \
 && /opt/pylb/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.lock \
 && /opt/pylb/bin/python -m pip install --no-cache-dir --no-deps . \
 && python3 deploy/zipapp.py /opt/phonehome.pyz


FROM ${PHONEHOME_BASE} AS phonehome
COPY --from=build /opt/phonehome.pyz /opt/phonehome/phonehome.pyz
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that runAsNonRoot can judge it.
USER 65532:65532
# Connects to the socket that `phonehome drain` uses: whether the process of this name and instance is alive. Whether the load
# balancer can be reached is no matter of health: a restart here would not help. (Kubernetes ignores this line.)
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 \
  CMD ["python3", "-c", "import os, socket, sys; sys.path.insert(0, '/opt/phonehome/phonehome.pyz'); from phonehome.credentials import read_file; from phonehome.drain_socket import socket_name; from phonehome.settings import parse; found = parse(os.environ, hostname=socket.gethostname(), read_file=read_file); s = socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(socket_name(found.name, found.instance, os.getuid()))"]
ENTRYPOINT ["python3", "/opt/phonehome/phonehome.pyz"]


FROM ${PYLB_BASE} AS pylb
RUN useradd --system --uid 65532 --user-group --no-create-home --home-dir /var/lib/pylb --shell /usr/sbin/nologin pylb \
 && install -d -o pylb -g pylb -m 0700 /var/lib/pylb
COPY --from=build /opt/pylb /opt/pylb
ENV PATH=/opt/pylb/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 STATE_DIRECTORY=/var/lib/pylb
USER 65532:65532
VOLUME /var/lib/pylb
EXPOSE 9000
STOPSIGNAL SIGTERM
# /livez of the admin listener, which stays on loopback inside the container too.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8404, timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["pylb"]
CMD ["run"]
