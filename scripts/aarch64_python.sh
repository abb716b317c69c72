#!/usr/bin/env bash
# An arm64 Python with numpy, ONNX Runtime and Pillow that runs here under qemu: FOLDER/bin/python.
#
#   scripts/aarch64_python.sh FOLDER [PIP]
#
# The packages of Debian or Ubuntu that `python3` needs are downloaded for arm64 and unpacked into FOLDER/sysroot. apt
# gets a state and a cache of its own there, so this machine's package lists, architectures and packages stay as they
# are. The libraries are arm64 wheels for that very Python. Needs qemu-aarch64-static (package qemu-user-static),
# apt-get, dpkg-deb and a network; minutes the first time, and 250 MB. Exit code 3 where one of these is not there.
set -euo pipefail

FOLDER=$(realpath -m "${1:?folder}")
PIP=${2:-python3 -m pip}
# ONNX Runtime 1.32 ends in a crash under qemu 7.2.
LIBRARIES=("numpy==2.4.6" "onnxruntime==1.23.2" "pillow==13.0.0")
# Has the dot product of Orin's Cortex-A78AE, and no more than that (SVE is slow to emulate).
CPU=cortex-a76

need() { command -v "$1" >/dev/null || { echo "$1 is not installed: $2" >&2; exit 3; }; }
need qemu-aarch64-static "apt-get install qemu-user-static"
need apt-get "this needs Debian or Ubuntu"
need dpkg-deb "this needs Debian or Ubuntu"

[ -e "$FOLDER/complete" ] && exit 0
rm -rf "$FOLDER"
mkdir -p "$FOLDER"/apt/{state/lists/partial,cache/archives/partial} "$FOLDER/sysroot"
: > "$FOLDER/apt/status"  # as if nothing were installed: apt then names all that Python needs
cat > "$FOLDER/apt/apt.conf" <<EOF
APT::Architecture "arm64";
#clear APT::Architectures;
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "$FOLDER/apt/state";
Dir::State::status "$FOLDER/apt/status";
Dir::Cache "$FOLDER/apt/cache";
EOF
export APT_CONFIG="$FOLDER/apt/apt.conf"
# Sources for another architecture alone, and a network that is not there, leave no package of that name.
apt-get -qq update || true
apt-get -qq -y --download-only install python3 libstdc++6 >/dev/null || {
    echo "apt-get cannot download python3 for arm64: no network, or no package source with that architecture" >&2
    exit 3
}
for package in "$FOLDER"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$FOLDER/sysroot"
done
rm -rf "$FOLDER/apt"
unset APT_CONFIG

PYTHON=$(basename "$(readlink "$FOLDER/sysroot/usr/bin/python3")")
$PIP download -q --dest "$FOLDER/wheels" --only-binary :all: --no-deps --python-version "${PYTHON#python}" \
    --implementation cp --abi "cp${PYTHON//[a-z.]/}" --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 "${LIBRARIES[@]}" || {
    echo "pip cannot download ${LIBRARIES[*]} for aarch64: no network, or none for $PYTHON" >&2
    exit 3
}
for wheel in "$FOLDER"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$FOLDER/site"
done
rm -rf "$FOLDER/wheels"

mkdir -p "$FOLDER/bin"
# In a folder of its own: Python takes a pyvenv.cfg beside it, or one folder up, for its own.
cat > "$FOLDER/bin/python" <<EOF
#!/bin/sh
# The child processes that Python starts are this script again: it is what sys.executable says.
PYTHONHOME="$FOLDER/sysroot/usr" PYTHONPATH="$FOLDER/site" \\
    exec qemu-aarch64-static -cpu $CPU -0 "$FOLDER/bin/python" -L "$FOLDER/sysroot" "$FOLDER/sysroot/usr/bin/$PYTHON" "\$@"
EOF
chmod +x "$FOLDER/bin/python"
"$FOLDER/bin/python" -c 'import numpy, onnxruntime, PIL, platform; print(platform.machine(), platform.python_version(), onnxruntime.__version__)'
touch "$FOLDER/complete"
