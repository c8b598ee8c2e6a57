# /opt/guestd: guestd with an interpreter, libraries and a C library of its own, for any Linux image, with a Python or
# without, glibc or musl. And a machine made of nothing but Debian and that, to try it in.
#
# As a machine of its own:        docker build -t guestd . && docker run --rm -it guestd
# In an image of yours, two lines:
#     COPY --from=guestd /opt/guestd /opt/guestd
#     ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]

ARG BASE=debian:12-slim

FROM ${BASE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    binutils ca-certificates libgcc-s1 patchelf python3 python3-venv
WORKDIR /src
# What /opt/guestd is made of, and nothing else: a change of a test or a document leaves this layer as it is.
COPY LICENSE ./
COPY image/opt image/requirements.txt image/
COPY image/bundle image/bundle
COPY guestd guestd
ARG WITHOUT
RUN image/opt /opt/guestd ${WITHOUT:+--without-$WITHOUT}

# Nothing but /opt/guestd: what COPY --from needs.
FROM scratch AS guestd
COPY --from=build /opt/guestd /opt/guestd

FROM ${BASE}
RUN mkdir -p /mnt/workspace /etc/guestd
COPY --from=guestd /opt/guestd /opt/guestd
COPY systemd/ /usr/lib/systemd/system/
RUN ln -s /opt/guestd/bin/guestd /opt/guestd/bin/guestctl /usr/local/bin/
# guestd ends in order on SIGTERM, and gives what it supervises 15 s of grace: stop with `docker stop -t 30`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/guestd/bin/guestd", "init"]
