#!/bin/bash
# Make a Debian package out of what `make wheelhouse` has made: deb.sh ARCHIVE DIRECTORY
#
# ARCHIVE is jobworker-VERSION-pyPYTHON-ARCH.tar; the package is for Debian releases that have that Python. All files are
# the package's own (`dpkg -V` checks them), nothing is downloaded or resolved where it is installed. Needs dpkg-deb.
set -euo pipefail
archive=$1 out=$2
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
IFS=- read -r _ version python machine <<<"$(basename "$archive" .tar)"
python=${python#py}
next=3.$((${python#3.} + 1))
case $machine in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) echo "deb.sh: Debian has no name for the machine $machine" >&2 && exit 1 ;;
esac

mkdir -p "$out"
work=$(mktemp -d "$out/.deb-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels" "$work/tree"
tar -C "$work/wheels" -xf "$archive"

# A virtual environment, as `python -m venv` lays it out, at the place where it will be.
home=/opt/jobworker/$version
venv=$work/tree$home/venv
packages=$venv/lib/python$python/site-packages
target=(--only-binary ":all:" --python-version "$python" --implementation cp)
for tag in manylinux_2_17 manylinux2014 manylinux_2_26 manylinux_2_28 manylinux_2_34; do
    target+=(--platform "${tag}_$machine")
done
"$root/.venv/bin/pip" --disable-pip-version-check -qq install --no-index --find-links "$work/wheels" --no-compile \
    --require-hashes "${target[@]}" --target "$packages" --requirement "$work/wheels/requirements.txt"
mkdir "$venv/bin"
ln -s "/usr/bin/python$python" "$venv/bin/python"
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$python" >"$venv/pyvenv.cfg"
mv "$packages/share" "$venv/share"
mkdir -p "$work/tree/usr/bin"
for name in worker-agent worker-client worker-pki; do
    # Behind the line that names the interpreter they are all Python.
    { echo "#!$home/venv/bin/python -I" && tail -n +2 "$packages/bin/$name"; } >"$venv/bin/$name"
    chmod +x "$venv/bin/$name"
    ln -s "../../opt/jobworker/current/venv/bin/$name" "$work/tree/usr/bin/$name"
done
rm -r "$packages/bin"
ln -s "$version" "$work/tree/opt/jobworker/current"

install -Dm 644 -t "$work/tree/usr/lib/systemd/system" "$venv"/share/jobworker/systemd/*.service
# A file of that name below /etc/systemd/system takes its place.
install -Dm 644 "$venv/share/jobworker/systemd/keeper-hardened.conf" \
    "$work/tree/usr/lib/systemd/system/jobworker-keeper.service.d/20-variant.conf"
install -Dm 644 "$here/deb/sysusers.conf" "$work/tree/usr/lib/sysusers.d/jobworker.conf"
install -Dm 644 "$root/LICENSE" "$work/tree/usr/share/doc/jobworker/copyright"
for said in "$work/wheels/jobworker-$version".{cdx.json,licences.txt}; do
    [ ! -e "$said" ] || install -Dm 644 -t "$work/tree/usr/share/doc/jobworker" "$said"
done
PYTHONPATH=$root/tests "$root/.venv/bin/python" -m support.manpages "$work/man"
gzip -9n "$work"/man/*.1
install -Dm 644 -t "$work/tree/usr/share/man/man1" "$work"/man/*.1.gz
completion() { install -Dm 644 <("$root/.venv/bin/worker-client" completion "$1") "$work/tree/usr/share/$2"; }
completion bash bash-completion/completions/worker-client
completion zsh zsh/vendor-completions/_worker-client
completion fish fish/vendor_completions.d/worker-client.fish
chmod -R u=rwX,go=rX "$work/tree"

# What it cannot run without has to be there before anything is unpacked: that takes the place of the version that runs.
control=$work/tree/DEBIAN
mkdir -m 755 "$control"
for script in postinst prerm postrm; do
    sed "s/@VERSION@/$version/g" "$here/deb/$script" >"$control/$script"
    chmod 755 "$control/$script"
done
(cd "$work/tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$work/md5sums"
mv "$work/md5sums" "$control/"
cat >"$control/control" <<END
Package: jobworker
Version: $version+py${python/./}
Architecture: $architecture
Maintainer: The jobworker authors <jobworker@example.org>
Installed-Size: $(du -sk --exclude=DEBIAN "$work/tree" | cut -f1)
Pre-Depends: python3 (>= $python), python3 (<< $next), libseccomp2
Depends: openssl, passwd, systemd
Suggests: nftables
Section: admin
Priority: optional
Description: agent that runs commands on this host for remote clients
 Each command is a job in a cgroup and a sandbox of its own, with limits on CPU, memory and disk. Clients start, stop
 and follow jobs over gRPC with mutual TLS 1.3. Jobs outlive restarts, upgrades and crashes of the agent.
END
dpkg-deb --root-owner-group --build "$work/tree" "$out" >&2
echo "$out/jobworker_$version+py${python/./}_$architecture.deb"
