# Gemini CLI in an agent machine.
#     docker build -t guestd-gemini-cli -f image/harness/gemini-cli.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
ARG VERSION=0.61.0
RUN npm install --global --no-fund --no-audit "@google/gemini-cli@${VERSION}" \
 && npm cache clean --force \
 && gemini --version
# Sessions, settings and credentials in the workspace (below .gemini there), which outlives the machine. No update of its
# own: the image is what was tested.
ENV GEMINI_CLI_HOME=/mnt/workspace/.harness/gemini-cli
RUN mkdir -p /etc/gemini-cli \
 && printf '{"general": {"enableAutoUpdate": false, "enableAutoUpdateNotification": false}}\n' \
    >/etc/gemini-cli/settings.json
# At run time: GEMINI_API_KEY.
