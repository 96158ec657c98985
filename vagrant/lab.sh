# The lab: libvirtd in a network namespace of its own, for machines without KVM, systemd or a way to the outside.
# Sourced by `vms`. Bridge, DHCP server and packet filter live in the namespace, and so does all that speaks with the
# VMs; no packet of theirs leaves it. The namespace also says which processes are the lab's.

NETNS=jobworker-vms
LIB=/var/lib/libvirt/jobworker
RUN=/run/jobworker-vms
VM_PACKAGES="vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu qemu-system-x86
    qemu-utils seabios ipxe-qemu dnsmasq-base mmdebstrap e2fsprogs iproute2 iptables openssh-client"

# A /dev/kvm that some may open and others not makes libvirtd look for its abilities again at each step, ten seconds
# each. What is mounted in here only libvirtd sees; the machines' own mount namespaces do not bear it.
HIDE_KVM=":"
if [ "${JOBWORKER_VM_DRIVER:-qemu}" = qemu ] && [ -e /dev/kvm ]; then
    HIDE_KVM="install -m 000 /dev/null $RUN/no-kvm && mount --bind $RUN/no-kvm /dev/kvm &&
        echo 'namespaces = []' >$RUN/qemu.conf && mount --bind $RUN/qemu.conf /etc/libvirt/qemu.conf"
fi

lab_enter() {
    ip netns exec $NETNS "$@"
}

lab_install() {
    dpkg-query -W "$@" >/dev/null 2>&1 && return
    say "installing $*"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

lab_up() {
    [ "$(id -u)" = 0 ] || fail "needs root here: there is no libvirtd or VirtualBox that serves ordinary users"
    # shellcheck disable=SC2086 # a list
    lab_install $VM_PACKAGES
    local suite box name
    for suite in $(suites "$@"); do
        say "box of $suite: built unless it is cached"
        box=$("$HERE/box.sh" "$suite")
        name=$(basename "$box")
        export "JOBWORKER_BOX_${suite^^}=$name"
        # The hypervisor's own user reads these; it may not enter a home directory.
        mkdir -p "$LIB/disks" "$LIB/$name"
        cp -u "$box/vmlinuz" "$box/initrd" "$LIB/$name/"
        install -m 600 "$box/key" "$LIB/$name/key"
        vagrant box list | grep -q "^$name " || vagrant box add --name "$name" "$box/box" >/dev/null
    done
    lab_start
}

# The lab's own; another one's machines are not the lab's.
lab_libvirtd_runs() {
    [ -e $RUN/libvirtd.pid ] && ip netns pids $NETNS | grep -qx "$(cat $RUN/libvirtd.pid)"
}

lab_start() {
    [ -e /run/netns/$NETNS ] || ip netns add $NETNS
    lab_enter ip link set lo up
    mkdir -p $RUN
    lab_libvirtd_runs || {
        ! lab_enter virsh --quiet version >/dev/null 2>&1 || fail "another libvirtd runs here: use it, without JOBWORKER_LAB"
        say "starting libvirtd"
        lab_enter virtlogd --daemon --pid-file $RUN/virtlogd.pid
        lab_enter bash -ec "$HIDE_KVM; exec libvirtd --daemon --pid-file $RUN/libvirtd.pid"
    }
    lab_enter virsh --quiet pool-info jobworker >/dev/null 2>&1 ||
        lab_enter virsh --quiet pool-create-as jobworker dir --target $LIB/disks >/dev/null
}

# End the connections that ssh keeps for later calls: a machine that takes another's place knows of none.
lab_hang_up() {
    local name pid
    for pid in $(ip netns pids $NETNS); do
        for name in "$@"; do
            [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") != "ssh: $CACHE/$name.sock [mux]"* ]] ||
                kill "$pid" 2>/dev/null || true
        done
    done
}

# Whatever is left in the namespace is the lab's own; it goes with it.
lab_down() {
    containers_down
    [ ! -e /run/netns/$NETNS ] || lab_end
    rm -rf $RUN $LIB
}

lab_end() {
    local each pids
    if lab_libvirtd_runs; then
        for each in $(lab_enter virsh --quiet list --all --name 2>/dev/null); do
            lab_enter virsh --quiet destroy "$each" >/dev/null 2>&1 || true
            lab_enter virsh --quiet undefine "$each" >/dev/null
        done
        # Not Debian's `default`, which is not ours to remove.
        lab_enter virsh --quiet net-destroy jobworker >/dev/null 2>&1 || true
        lab_enter virsh --quiet net-undefine jobworker >/dev/null 2>&1 || true
    fi
    pids=$(ip netns pids $NETNS)
    # shellcheck disable=SC2086 # a list
    [ -z "$pids" ] || { kill $pids; timeout 60 tail --pid="${pids%%$'\n'*}" -f /dev/null || true; }
    pids=$(ip netns pids $NETNS)
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -KILL $pids
    ip netns delete $NETNS
}
