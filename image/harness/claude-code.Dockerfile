# Claude Code in an agent machine.
#     docker build -t guestd-claude-code -f image/harness/claude-code.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
ARG VERSION=2.1.330
RUN npm install --global --no-fund --no-audit "@anthropic-ai/claude-code@${VERSION}" \
 && npm cache clean --force \
 && claude --version
# Sessions, settings and credentials in the workspace, which outlives the machine. No update of its own: the image is
# what was tested.
ENV CLAUDE_CONFIG_DIR=/mnt/workspace/.harness/claude-code \
    DISABLE_AUTOUPDATER=1
# At run time: ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN.
