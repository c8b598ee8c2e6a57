# Kiro CLI in an agent machine. It is in no package registry: its maker's own installer, whose terms you accept, fetches
# the version of the day from https://cli.kiro.dev when this is built.
#     docker build -t guestd-kiro -f image/harness/kiro.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
# Not below a home directory: there it would update itself, and a disk that is mounted over it would hide it.
RUN mkdir /opt/kiro \
 && curl --fail --silent --show-error --location https://cli.kiro.dev/install | HOME=/opt/kiro bash \
 && ln -s /opt/kiro/.local/bin/kiro-cli* /usr/local/bin/ \
 && kiro-cli --version
# Its settings, sessions and credentials are in ~/.kiro and ~/.local/share/kiro-cli, and no variable moves them: to keep
# them, give the machine a disk or a volume for /home/agent too.
# At run time: KIRO_API_KEY with `kiro-cli chat --no-interactive`, or `kiro-cli login --use-device-flow` once.
