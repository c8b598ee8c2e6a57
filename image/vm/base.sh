#!/bin/sh
# base.sh minbase SUITE MIRROR OUT          a Debian as small as debootstrap makes it, as the tar OUT
# base.sh on BASE OUT PACKAGE…              the packages on top of such a tar, as another; what nobody needs is left out
#
# It runs in mount and PID namespaces of its own: nothing that is mounted or started here outlives it. In memory, since
# dpkg has each file that it unpacks written to the disk before it goes on.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

what=$1
shift
mount -t tmpfs -o mode=0755 guestd-base "$SCRATCH"
root=$SCRATCH/root
mkdir "$root"

# NAME…: what is in these folders of the new root.
empty() {
    for each in "$@"; do
        [ ! -d "$root/$each" ] || find "$root/$each" -mindepth 1 -delete
    done
}

if [ "$what" = minbase ]; then
    debootstrap --variant=minbase "$1" "$root" "$2"
    out=$3
    empty var/cache/apt var/lib/apt/lists var/log
else
    tar --numeric-owner --xattrs --xattrs-include='*' -C "$root" -xpf "$1"
    out=$2
    shift 2
    mount -t proc proc "$root/proc"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    # As this machine reaches its mirrors; and no package starts anything.
    ways=$root/etc/apt/apt.conf.d/80machine
    apt-config dump | grep '^Acquire::http' >"$ways" || :
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    chroot "$root" apt-get update -qq
    chroot "$root" apt-get install -y -qq --no-install-recommends "$@"
    rm "$ways" "$root/usr/sbin/policy-rc.d"
    umount "$root/proc"
    # What is different in each run, or of no use to a machine that is thrown away.
    empty var/cache/apt var/lib/apt/lists var/log var/cache/debconf usr/share/doc usr/share/man usr/share/locale \
        usr/share/info
    rm -f "$root/etc/hostname" "$root/var/lib/dbus/machine-id" "$root/var/cache/ldconfig/aux-cache"
    : >"$root/etc/machine-id"
fi
tar --one-file-system --numeric-owner --sort=name --xattrs --xattrs-include='*' -C "$root" -cf "$out" .
