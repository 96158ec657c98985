# Hosts of the lab that are containers: systemd in namespaces of its own (container.sh), as fast as the machine itself.
# Sourced by `vms`. They have the kernel that runs here, so its cgroups have to be v1's. Each lives in a network
# namespace of its own, with a cable into the lab's.

CONTAINERS=$LIB/containers
BRIDGE=10.77.0

container_address() {
    case $1 in
        c-v1) echo $BRIDGE.11 ;;
        c-hybrid) echo $BRIDGE.12 ;;
    esac
}

containers_up() {
    [ "$(id -u)" = 0 ] || fail "needs root here, for containers"
    [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ] || fail "$*: the kernel here has no cgroup v1 controllers"
    lab_install mmdebstrap openssh-client iproute2
    local made name root
    say "root directory of bookworm: built unless it is cached"
    made=$("$HERE/root.sh" bookworm)
    ip netns list | grep -qw $NETNS || ip netns add $NETNS
    lab_enter ip link set lo up
    lab_enter ip link show jobworker >/dev/null 2>&1 || {
        lab_enter ip link add jobworker type bridge
        lab_enter ip address add $BRIDGE.1/24 dev jobworker
        lab_enter ip link set jobworker up
    }
    for name in "$@"; do
        [ ! -e "$CONTAINERS/$name" ] || continue
        say "booting $name"
        root=$CONTAINERS/$name
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
        setsid ip netns exec "$NETNS-$name" "$HERE/container.sh" "$name" "${name#c-}" "$root" \
            >"$CONTAINERS/$name.log" 2>&1 </dev/null &
    done
}

# As `vagrant ssh-config` tells it.
containers_ssh_config() {
    local name
    for name in "$@"; do
        printf 'Host %s\n  ConnectionAttempts 60\n  HostName %s\n  User vagrant\n  IdentityFile %s/key\n' "$name" "$(container_address "$name")" "$("$HERE/root.sh" bookworm)"
        printf '  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel FATAL\n'
    done
}

containers_down() {
    local netns pid pids directory
    for netns in $(ip netns list | awk -v prefix="$NETNS-" 'index($1, prefix) == 1 { print $1 }'); do
        pids=$(ip netns pids "$netns")
        # shellcheck disable=SC2086 # a list
        [ -z "$pids" ] || kill -KILL $pids
        for pid in $pids; do timeout 60 tail --pid="$pid" -f /dev/null; done
        ip netns delete "$netns"
    done
    for directory in /sys/fs/cgroup/*/jobworker-lab; do
        [ ! -e "$directory" ] || find "$directory" -depth -type d -exec rmdir {} +
    done
}
