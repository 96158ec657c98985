#!/bin/bash
# Collect what the tests need inside the machines, which can't reach a package index: wheels.sh DIRECTORY PYTHON...
#
# Makes DIRECTORY/<Python version>/ with jobworker built from the working tree, and the wheels that it and its tests
# need for that Python, by the hashes of requirements/dev.lock.
set -euo pipefail
wheels=$1
shift
root=$(dirname "$(dirname "$(readlink -f "$0")")")
pip() { "$root/.venv/bin/pip" --disable-pip-version-check -qq "$@"; }

built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
pip wheel --no-deps --no-build-isolation --wheel-dir "$built" "$root"

recipe=$(cat "$root/requirements/dev.lock" "$0" | sha256sum)
for version in "$@"; do
    target=(--only-binary ":all:" --python-version "$version")
    if [ "$(cat "$wheels/$version/recipe" 2>/dev/null)" != "$recipe" ]; then
        rm -rf "$wheels/$version"
        pip download "${target[@]}" --dest "$built/$version" --requirement "$root/requirements/dev.lock"
        # Of all that was checked, those that are needed: a tenth of the time to install in a slow VM.
        pip download "${target[@]}" --no-index --find-links "$built/$version" --dest "$wheels/$version" \
            "$built"/jobworker-*.whl pytest pytest-timeout hypothesis
        echo "$recipe" >"$wheels/$version/recipe"
    fi
    rm -f "$wheels/$version"/jobworker-*.whl
    cp "$built"/jobworker-*.whl "$wheels/$version/"
done
