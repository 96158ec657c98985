# Hosts of the lab that are containers: systemd in namespaces of its own (container.sh), as fast as the machine itself.
# Sourced by `vms`. They have the kernel that runs here, so its cgroups have to be hybrid. Each has a network namespace
# of its own, with a cable into the lab's.

CONTAINERS=$LIB/containers
BRIDGE=10.77.0
# Two of a kind, for two fleets side by side.
CONTAINER_NAMES=(c-v1 c-hybrid c-v1-2 c-hybrid-2)

container_address() {
    case $1 in
        c-v1) echo $BRIDGE.11 ;;
        c-hybrid) echo $BRIDGE.12 ;;
        c-v1-2) echo $BRIDGE.21 ;;
        c-hybrid-2) echo $BRIDGE.22 ;;
    esac
}

container_mode() {
    case $1 in
        c-v1*) echo v1 ;;
        c-hybrid*) echo hybrid ;;
    esac
}

# Both kinds can be had where v1's controllers and a cgroup2 are mounted.
containers_can_be_had() {
    grep -q '^cgroup2 ' /proc/self/mounts && grep -Eq '^cgroup .*\bmemory\b' /proc/self/mounts
}

# True for one that runs, and not for what a failure has left.
container_runs() {
    [ -e "/run/netns/$NETNS-$1" ] && [ -n "$(ip netns pids "$NETNS-$1")" ]
}

containers_up() {
    [ "$(id -u)" = 0 ] || fail "needs root here, for containers"
    containers_can_be_had || fail "$*: containers need a kernel with cgroup v1, and a cgroup2 that is mounted beside it"
    lab_install mmdebstrap openssh-client iproute2
    local made name root
    say "root directory of bookworm: built unless it is cached"
    made=$("$HERE/root.sh" bookworm)
    [ -e /run/netns/$NETNS ] || ip netns add $NETNS
    lab_enter ip link set lo up
    lab_enter ip link show jobworker >/dev/null 2>&1 || {
        lab_enter ip link add jobworker type bridge
        lab_enter ip address add $BRIDGE.1/24 dev jobworker
        lab_enter ip link set jobworker up
    }
    for name in "$@"; do
        ! container_runs "$name" || continue
        say "booting $name"
        container_down "$NETNS-$name"
        root=$CONTAINERS/$name
        rm -rf "$root"
        mkdir -p "$root"
        tar -C "$root" -xf "$made/root.tar"
        rm "$root/etc/fstab"
        echo "$name" >"$root/etc/hostname"
        ip netns add "$NETNS-$name"
        lab_enter ip link add "$name" type veth peer name host0 netns "$NETNS-$name"
        lab_enter ip link set "$name" master jobworker up
        ip -n "$NETNS-$name" address add "$(container_address "$name")/24" dev host0
        ip -n "$NETNS-$name" link set host0 up
        ip -n "$NETNS-$name" link set lo up
        # `ip netns exec` would hide the cgroups.
        setsid nsenter --net="/run/netns/$NETNS-$name" "$HERE/container.sh" "$name" "$(container_mode "$name")" "$root" \
            >"$CONTAINERS/$name.log" 2>&1 </dev/null &
    done
}

# As `vagrant ssh-config` tells it.
containers_ssh_config() {
    local name key
    key=$("$HERE/root.sh" bookworm)/key
    for name in "$@"; do
        printf 'Host %s\n  HostName %s\n  User vagrant\n  IdentityFile %s\n  IdentitiesOnly yes\n' \
            "$name" "$(container_address "$name")" "$key"
        printf '  ConnectionAttempts 60\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel FATAL\n'
    done
}

# All that is in a network namespace, and the namespace.
container_down() {
    local pid pids
    [ -e "/run/netns/$1" ] || return 0
    pids=$(ip netns pids "$1")
    # shellcheck disable=SC2086 # a list
    [ -z "$pids" ] || kill -KILL $pids || true
    for pid in $pids; do timeout 60 tail --pid="$pid" -f /dev/null || true; done
    ip netns delete "$1"
}

# All, or those that are named.
containers_down() {
    local name directory
    [ $# != 0 ] || set -- "${CONTAINER_NAMES[@]}"
    for name in "$@"; do
        container_down "$NETNS-$name"
        for directory in /sys/fs/cgroup/*/jobworker-lab/"$name"; do
            [ ! -e "$directory" ] || find "$directory" -depth -type d -exec rmdir {} +
        done
    done
    # Once none is left.
    rmdir /sys/fs/cgroup/*/jobworker-lab 2>/dev/null || true
}
