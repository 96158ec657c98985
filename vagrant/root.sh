#!/bin/bash
# Make the root directory that all hosts of the lab are made of, out of Debian packages: root.sh SUITE
#
# Prints the directory that holds root.tar, and `key`, which the user vagrant is reached by. Nothing is done if the same
# recipe's is there: the directory's name holds the recipe's hash. Needs root, mmdebstrap, openssh-client.
set -euo pipefail

suite=$1
here=$(dirname "$(readlink -f "$0")")
roots=${XDG_CACHE_HOME:-$HOME/.cache}/jobworker-vms/roots
recipe=$(cat "$here/root.sh" "$here/root-setup.sh" "$here/packages.txt" | sha256sum | cut -c1-12)
made=$roots/jobworker-$suite-$recipe

if [ ! -e "$made" ]; then
    mkdir -p "$roots"
    work=$(mktemp -d "$roots/.$suite-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    ssh-keygen -q -t ed25519 -N "" -C "$suite" -f "$work/key"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$(paste -sd, "$here/packages.txt")" \
        --customize-hook="'$here/root-setup.sh' '$work/key.pub' \"\$1\"" "$suite" "$work/root.tar" >&2
    # Those of earlier recipes serve nobody any more.
    rm -rf "$roots/jobworker-$suite-"*
    mv "$work" "$made"
fi
echo "$made"
