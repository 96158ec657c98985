#!/bin/bash
# Boot a root directory as a host of its own, on the kernel that runs here: container.sh NAME MODE ROOT
#
# Runs until the host is powered off; boots it again when it reboots. To be called in the network namespace that is to
# be the host's, and with this machine's mounts. MODE is v1, or hybrid: with a cgroup2 beside the controllers. A virtual machine shows what another
# kernel does; this one is there in a second, and as fast as the machine itself.
#
# Sources: https://systemd.io/CONTAINER_INTERFACE, cgroup_namespaces(7), reboot(2).
set -euo pipefail

# As process 1 of its namespaces, before systemd is executed in its place.
if [ "${1:-}" = --init ]; then
    root=$4 legacy=0
    [ "$3" = hybrid ] || legacy=1
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    # None of these is the host's alone: settings of the kernel, and the key by which it is rebooted.
    for each in sys sysrq-trigger; do
        [ -e "proc/$each" ] || continue
        mount --bind "proc/$each" "proc/$each"
        mount -o remount,bind,ro "proc/$each"
    done
    cat /proc/sys/kernel/random/uuid >run-boot-id
    mount --bind run-boot-id proc/sys/kernel/random/boot_id
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    for each in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "dev/${each%:*}" c 1 "${each#*:}"
    done
    mknod -m 666 dev/tty c 5 0
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    # With a cgroup2 beside them or without, systemd decides by its arguments.
    cut -d: -f2 /proc/self/cgroup | grep . | while read -r controllers; do
        mkdir "sys/fs/cgroup/${controllers#name=}"
        mount -t cgroup -o "$controllers" cgroup "sys/fs/cgroup/${controllers#name=}"
    done
    mkdir -p before
    pivot_root . before
    umount --lazy /before
    rmdir /before
    exec setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time,-syslog env -i container=jobworker PATH="$PATH" \
        /lib/systemd/systemd "systemd.unified_cgroup_hierarchy=0" "systemd.legacy_systemd_cgroup_controller=$legacy"
fi

name=$1
# Its own cgroup in each hierarchy, which is the root to those in there: two that share one share their limits as well.
points=$(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts)
[ -n "$points" ] || { echo "no cgroups are mounted where this is called" >&2; exit 1; }
for point in $points; do
    cgroup=$point/jobworker-lab/$name
    mkdir -p "$cgroup"
    for each in "${cgroup%/*}" "$cgroup"; do
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$each/$file" ] || cat "${each%/*}/$file" >"$each/$file"
        done
    done
    echo $$ >"$cgroup/cgroup.procs"
done

status=129
# What reboot(2) in there ends process 1 with: SIGHUP for a restart, SIGINT for an end.
while [ "$status" = 129 ]; do
    status=0
    unshare --mount --uts --ipc --pid --fork --cgroup --kill-child "$0" --init "$@" || status=$?
done
[ "$status" = 130 ]
