# Codex in an agent machine.
#     docker build -t guestd-codex -f image/harness/codex.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
ARG VERSION=0.169.0
RUN npm install --global --no-fund --no-audit "@openai/codex@${VERSION}" \
 && npm cache clean --force \
 && codex --version
# Sessions and credentials in the workspace, which outlives the machine. Codex makes everything in that directory but the
# directory itself, and the workspace may be an empty disk: so it is started by a script that makes it.
ENV CODEX_HOME=/mnt/workspace/.harness/codex
RUN program=$(readlink -f /usr/local/bin/codex) \
 && rm /usr/local/bin/codex \
 && printf '#!/bin/sh\nmkdir -p "$CODEX_HOME" && exec %s "$@"\n' "$program" >/usr/local/bin/codex \
 && chmod 755 /usr/local/bin/codex
# At run time: OPENAI_API_KEY or CODEX_API_KEY, or `codex login --device-auth` once.
