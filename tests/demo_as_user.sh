#!/usr/bin/env bash
# The newcomer's way: an ordinary user, a clean clone, the system's Python, `make demo`. Run as root, which makes
# the user and removes it again.
set -euo pipefail
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
user=jobworker-demo
home=$(mktemp -d /var/tmp/jobworker-demo-XXXXXX)

clean_up() {
    # Containers may have a user of the same number.
    pkill -KILL --ns $$ --nslist pid -u "$user" || true
    userdel "$user"
    rm -rf "$home"
}

useradd --home-dir "$home" --shell /bin/bash "$user"
trap clean_up EXIT
git clone --quiet "$root" "$home/jobworker"
chown -R "$user:" "$home"
runuser -u "$user" -- env -i HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
    make --silent -C "$home/jobworker" PYTHON=/usr/bin/python3 demo
