#!/bin/sh
# PID 1 from the initramfs to the root file system: modules, the root, then `exec` of its init. Nothing else: what a
# machine needs beyond that, `guestd init` does. The kernel's own words: root=, rootfstype=, rootflags=, ro, rw, init=.
# A root that is `ro` is shared by many machines: what is written goes to memory, over it.
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

fail() {
    echo "initramfs: $*" >/dev/kmsg
    # There is nothing to go on with, and nobody to type: end, so that the hypervisor sees an end.
    reboot -f
}

root= type=ext4 flags= mode=ro init=/sbin/init
read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in
    --) break ;;
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) flags=,${word#rootflags=} ;;
    ro | rw) mode=$word ;;
    init=*) init=${word#init=} ;;
    esac
done

while read -r module; do
    # One without its device, or built into this kernel, is no reason not to go on.
    insmod "$module" 2>/dev/null
done </modules

# A driver finds its disk a moment after it was loaded.
tries=0
until [ -b "$root" ]; do
    tries=$((tries + 1))
    [ $tries -lt 500 ] || fail "there is no disk $root"
    sleep 0.01
done

mkdir -p /root /lower /memory
if [ "$mode" = rw ]; then
    mount -t "$type" -o "rw$flags" "$root" /root || fail "$root cannot be mounted as $type"
else
    mount -t "$type" -o "ro$flags" "$root" /lower || fail "$root cannot be mounted as $type"
    mount -t tmpfs -o mode=0755 tmpfs /memory
    mkdir /memory/upper /memory/work
    mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root ||
        fail "no overlay over $root"
fi

for each in proc sys dev; do
    mkdir -p "/root/$each"
    mount --move "/$each" "/root/$each"
done
# What comes next has a PATH of its own.
unset PATH
exec /bin/switch_root /root "$init" "$@"
