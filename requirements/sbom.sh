#!/bin/bash
# Say what jobworker is made of: sbom.sh DIRECTORY
#
# jobworker-VERSION.cdx.json, a bill of materials in the form of CycloneDX, and jobworker-VERSION.licences.txt, a line for
# each part. Both are of install.lock as it is installed; that a part or a licence is missing is an error. The same
# lock makes the same bytes.
set -euo pipefail
out=$1
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
version=$("$root/.venv/bin/python" -c 'import jobworker; print(jobworker.__version__)')

mkdir -p "$out"
work=$(mktemp -d "$out/.sbom-XXXXXX")
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m venv --without-pip "$work/venv"
"$root/.venv/bin/pip" --python "$work/venv/bin/python" --disable-pip-version-check -qq install --no-compile --no-deps \
    --require-hashes --requirement "$here/install.lock"
"$root/.venv-sbom/bin/cyclonedx-py" environment --pyproject "$root/pyproject.toml" --mc-type application \
    --gather-license-texts --output-reproducible --output-file "$work/bom" "$work/venv/bin/python"
PYTHONPATH=$root/tests "$root/.venv/bin/python" -m support.licences "$work/bom" "$here/install.lock" >"$work/licences"
mv "$work/bom" "$out/jobworker-$version.cdx.json"
mv "$work/licences" "$out/jobworker-$version.licences.txt"
echo "$out/jobworker-$version.cdx.json"
echo "$out/jobworker-$version.licences.txt"
