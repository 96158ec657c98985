#!/usr/bin/env bash
# What jobworker does, in front of your eyes: each command is shown, run, and checked. Needs nothing but an
# installed environment (`make setup`); all that it makes is in a temporary directory and gone afterwards.
set -euo pipefail

bin=${1:?usage: demo.sh DIRECTORY-OF-THE-COMMANDS}
PATH=$(cd "$bin" && pwd):$PATH
dir=$(mktemp -d "${TMPDIR:-/tmp}/jobworker-demo-XXXXXX")
chmod 755 "$dir"
agent=

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(tput bold) dim=$(tput dim) plain=$(tput sgr0); else bold='' dim='' plain=''; fi
quoted() {
    local word line=''
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./:=%-]*|'') word=${word@Q} ;; esac
        line="$line$word "
    done
    printf '%s' "$line"
}
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$dim" "$(quoted "$@")" "$plain"; "$@"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Runs a command whose exit status is part of what is shown.
expect() {
    local wanted=$1 status=0
    shift
    show "$@" || status=$?
    [ "$status" -eq "$wanted" ] || fail "it ended with $status instead of $wanted; the agent's log: $(tail -n 20 "$dir/agent.log")"
    printf '%s(exit status %s)%s\n' "$dim" "$status" "$plain"
}

clean_up() {
    if [ -n "$agent" ]; then
        kill -TERM "$agent" 2>/dev/null || true
        wait "$agent" || true
    fi
    rm -rf "$dir"
}
trap clean_up EXIT

say "1. An agent on this machine, with certificates made for it (RSA-4096; this takes some seconds)"
printf '%s$ worker-agent dev --dir %s --listen 127.0.0.1:0%s\n' "$dim" "$dir" "$plain"
mkfifo "$dir/ready"
worker-agent dev --dir "$dir" --listen 127.0.0.1:0 >"$dir/ready" 2>"$dir/agent.log" &
agent=$!
exec 3<"$dir/ready"
read -r word address _ <&3 || fail "the agent did not start: $(cat "$dir/agent.log")"
[ "$word" = ready ] || fail "the agent said: $word $address"
export JOBWORKER_ADDR=$address JOBWORKER_CA=$dir/pki/ca.pem
export JOBWORKER_CERT=$dir/pki/writer.pem JOBWORKER_KEY=$dir/pki/writer.key
show worker-client info
limited=$(worker-client info --format json | python3 -c '
import json, sys
limits = json.load(sys.stdin)["limits"]
print("yes" if all(limits[name]["enforcement"] == "ENFORCED" for name in ("cpu", "memory")) else "no")')

say "2. A command that reads real files; its exit code is yours"
expect 0 worker-client run -- sh -c 'head -n 2 /etc/os-release; wc -l /etc/passwd'
expect 3 worker-client run -- sh -c 'echo "something went wrong" >&2; exit 3'

say "3. Output while it is being written"
job=$(worker-client start -- sh -c 'for i in 1 2 3 4; do echo "tick $i"; sleep 0.5; done')
expect 0 worker-client stream "$job" --follow

if [ "$limited" = yes ]; then
    say "4. A job that would take a whole CPU, held at half of one"
    job=$(worker-client start --cpu 50% --timeout 4s -- sh -c 'while :; do :; done')
    worker-client stream "$job" --follow
    show worker-client query "$job"
    worker-client query "$job" --format json | python3 -c '
import datetime, json, sys
job = json.load(sys.stdin)
begin, end = (datetime.datetime.fromisoformat(job[name][:26] + "+00:00") for name in ("started_at", "ended_at"))
used, lasted = job["usage"]["cpu_seconds"], (end - begin).total_seconds()
print(f"{used:.2f} s of CPU in {lasted:.2f} s: {100 * used / lasted:.0f} %")
sys.exit(not used < 0.6 * lasted)' || fail "the job was not held at 50 %"

    say "5. A job that goes over its memory limit is killed, alone, and the reason is told"
    expect 137 worker-client run --memory 64M -- sh -c 'exec tail /dev/zero'
else
    say "4. and 5. Limits: this user has no cgroups here, and a limit that can't be enforced is refused, not ignored"
    expect 125 worker-client run --cpu 50% -- true
    expect 125 worker-client run --memory 64M -- true
fi

say "6. Stop takes the whole process tree, however it was forked"
marker=$((100000 + RANDOM))
job=$(worker-client start -- sh -c "setsid sh -c 'setsid sleep $marker & sleep $marker' & trap '' TERM; echo up; sleep $marker; sleep $marker")
read -r word < <(worker-client stream "$job" --follow) && [ "$word" = up ] || fail "the job did not come up"
printf '%s processes of the job run\n' "$(pgrep -cf "sleep $marker")"
expect 0 worker-client stop "$job" --grace 1s
left=$(pgrep -cf "^sleep $marker" || true)
printf '%s are left\n' "$left"
[ "$left" -eq 0 ] || fail "processes were left behind"

say "7. A reader may look, and may not start anything"
export JOBWORKER_CERT=$dir/pki/reader.pem JOBWORKER_KEY=$dir/pki/reader.key
expect 0 worker-client list
expect 4 worker-client start -- true

say "8. Cleaning up"
kill -TERM "$agent"
wait "$agent" || fail "the agent ended with an error: $(cat "$dir/agent.log")"
agent=
echo "The agent has ended and nothing of it is left."
