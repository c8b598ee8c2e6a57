# Cursor CLI in an agent machine. It is in no package registry: its maker's own installer, whose terms you accept, fetches
# the version of the day from https://cursor.com when this is built.
#     docker build -t guestd-cursor -f image/harness/cursor.Dockerfile image/harness
ARG MACHINE=guestd-agent
FROM ${MACHINE}
# Not below a home directory: a disk that is mounted over it would hide it.
RUN mkdir /opt/cursor \
 && curl --fail --silent --show-error --location https://cursor.com/install | HOME=/opt/cursor bash \
 && ln -s /opt/cursor/.local/bin/* /usr/local/bin/ \
 && cursor-agent --version
# Its settings, chats and credentials are in ~/.cursor and ~/.config/cursor: to keep them, give the machine a disk or a
# volume for /home/agent too.
# At run time: CURSOR_API_KEY with `cursor-agent --print`, or `NO_OPEN_BROWSER=1 cursor-agent login` once.
