# OpenCode in an agent machine.
#     docker build -t guestd-opencode -f image/harness/opencode.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
ARG VERSION=1.18.33
RUN npm install --global --no-fund --no-audit "opencode-ai@${VERSION}" \
 && npm cache clean --force \
 && opencode --version
# Sessions and credentials in the workspace, which outlives the machine. OpenCode has only the variable that every program
# has for this, so a script sets it, for it alone.
ENV OPENCODE_DISABLE_AUTOUPDATE=1
RUN program=$(readlink -f /usr/local/bin/opencode) \
 && rm /usr/local/bin/opencode \
 && printf '#!/bin/sh\nXDG_DATA_HOME=/mnt/workspace/.harness exec %s "$@"\n' "$program" >/usr/local/bin/opencode \
 && chmod 755 /usr/local/bin/opencode
# At run time: the key of whichever model's provider (ANTHROPIC_API_KEY, OPENAI_API_KEY, …), or `opencode auth login` once.
