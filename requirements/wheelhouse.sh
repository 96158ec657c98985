#!/bin/bash
# Make what hosts install from, without a way to the outside: wheelhouse.sh DIRECTORY [SOURCE]
#
# One archive for each Python: jobworker-VERSION-pyVERSION-ARCH.tar with the wheels of install.lock, jobworker built
# from SOURCE (this tree), pip, and a requirements.txt that has all of them by hash; and what `make sbom` has made beside
# DIRECTORY, if it has. The same input makes the same bytes.
# PYTHONS="3.11 3.12 3.13" and ARCH=x86_64 say what for.
set -euo pipefail
out=$1
here=$(dirname "$(readlink -f "$0")")
source=${2:-$(dirname "$here")}
arch=${ARCH:-$(uname -m)}
pip() { "$(dirname "$here")/.venv/bin/pip" --disable-pip-version-check -qq "$@"; }

mkdir -p "$out"
work=$(mktemp -d "$out/.wheelhouse-XXXXXX")
trap 'rm -rf "$work"' EXIT
pip wheel --no-deps --no-build-isolation --wheel-dir "$work" "$source"
wheel=$(basename "$work"/jobworker-*.whl)
version=$(cut -d- -f2 <<<"$wheel")

for python in ${PYTHONS:-3.11 3.12 3.13}; do
    target=(--only-binary ":all:" --python-version "$python" --implementation cp)
    for tag in manylinux_2_17 manylinux2014 manylinux_2_26 manylinux_2_28 manylinux_2_34; do
        target+=(--platform "${tag}_$arch")
    done
    wheels=$work/$python
    pip download "${target[@]}" --no-deps --require-hashes --dest "$wheels" \
        --requirement "$here/install.lock" --requirement "$here/bootstrap.lock"
    cp "$work/$wheel" "$wheels/"
    for said in "$out/../jobworker-$version".{cdx.json,licences.txt}; do
        [ ! -e "$said" ] || cp "$said" "$wheels/"
    done
    {
        cat "$here/install.lock"
        printf 'jobworker==%s \\\n    --hash=sha256:%s\n' "$version" "$(sha256sum "$work/$wheel" | cut -d' ' -f1)"
    } >"$wheels/requirements.txt"
    archive=jobworker-$version-py$python-$arch.tar
    tar -C "$wheels" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        -cf "$work/$archive" .
    mv "$work/$archive" "$out/"
    echo "$out/$archive"
done
