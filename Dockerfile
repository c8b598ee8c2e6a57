# guestd in a directory of its own, /opt/guestd: a virtual environment on Debian's Python, compiled, without pip.
#
# As a machine of its own:        docker build -t guestd . && docker run --rm -it guestd
# In an image of yours, two lines (it needs Debian 12's python3; any other Python 3.11 or newer: build with BASE):
#     COPY --from=guestd /opt/guestd /opt/guestd
#     ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]

ARG BASE=debian:12-slim

FROM ${BASE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv
WORKDIR /src
# What the package is made of, and nothing else: a change of a test or a document leaves this layer as it is.
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY guestd guestd
# Everything is compiled here: importing from source would make each start five times as long, and a read-only root file
# system would never get any better. `unchecked-hash`: nobody edits an image, so no start compares dates.
RUN python3 -m venv /opt/guestd \
 && /opt/guestd/bin/pip install --no-cache-dir --no-compile . \
 && /opt/guestd/bin/pip uninstall -y pip setuptools \
 && find /opt/guestd -name tests -type d -prune -exec rm -rf {} + \
 && /usr/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/guestd/lib \
 && /opt/guestd/bin/guestd version

FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m compileall -q -j 0 /usr/lib/python3* \
 && mkdir -p /mnt/workspace /etc/guestd
COPY --from=build /opt/guestd /opt/guestd
COPY systemd/ /usr/lib/systemd/system/
RUN ln -s /opt/guestd/bin/guestd /opt/guestd/bin/guestctl /usr/local/bin/
# guestd ends in order on SIGTERM, and gives what it supervises 15 s of grace: stop with `docker stop -t 30`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]
