#!/usr/bin/env bash
# Build Horovod from its last release against the torch that is installed, and install it beside that torch.
# The release is of 2023: PATCHES holds what today's torch, Python and CMake ask of it.
set -euo pipefail

VERSION=0.28.1
SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
# What Horovod imports while it runs.
NEEDS=(cloudpickle packaging psutil pyyaml)

# The file, how often the text stands in it, the text, what stands there afterwards.
PATCHES=$(cat <<'END'
[
    # Headers of torch 2.13 and later are C++20.
    ("CMakeLists.txt", 1, "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
    ("horovod/torch/CMakeLists.txt", 1, "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
    ("horovod/common/ops/cuda/CMakeLists.txt", 1, "set(CMAKE_CUDA_STANDARD 11)", "set(CMAKE_CUDA_STANDARD 20)"),
    # distutils left Python with 3.12.
    ("horovod/torch/CMakeLists.txt", 1, "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        "import sysconfig; print(sysconfig.get_path('include'))"),
    ("horovod/runner/js_run.py", 1, "from distutils.spawn import find_executable",
        "from shutil import which as find_executable"),
    # Nothing imports it any more, and pip check would miss it.
    ("setup.py", 1, "require_list.append('cffi>=1.4.0')", "pass"),
]
END
)
# Without NCCL, CUDA is kept out altogether: a torch built for CUDA does not need a toolkit then.
WITHOUT_CUDA=$(cat <<'END'
[
    ("cmake/Modules/FindPytorch.cmake", 1, "(torch.version.cuda is not None) and (CUDA_HOME is not None)", "False"),
    ("CMakeLists.txt", 1, "\nif(CMAKE_CUDA_COMPILER)\n", "\nif(FALSE)\n"),
]
END
)

usage() {
    cat <<'END'
usage: scripts/install_horovod.sh [--python PATH] [--target DIR] [--wheel-dir DIR] [--cpu]

  --python PATH     the Python whose torch Horovod is built against (.venv/bin/python)
  --target DIR      install into this folder, for PYTHONPATH, instead of into that Python
  --wheel-dir DIR   where built wheels are kept (~/.cache/edgelab/horovod, or below $EDGELAB_CACHE)
  --cpu             without NCCL even where there is a CUDA toolkit
END
}

fail() {
    echo "error: $*" >&2
    exit 2
}

python=.venv/bin/python
target=
wheel_dir=${EDGELAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgelab}/horovod
cpu=
while [ $# -gt 0 ]; do
    case $1 in
        --python | --target | --wheel-dir)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --python) python=$2 ;;
                --target) target=$2 ;;
                --wheel-dir) wheel_dir=$2 ;;
            esac
            shift 2
            ;;
        --cpu) cpu=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
done

"$python" --version > /dev/null 2>&1 || fail "$python does not run: make setup, or give --python PATH"
"$python" -m pip --version > /dev/null 2>&1 || fail "$python has no pip: $python -m ensurepip"
# Version of torch, of its CUDA ("None" without), tag of the Python, folder of the nccl wheel ("" without).
facts=$("$python" - 2> /dev/null <<'END'
import importlib.util
import sys

import torch

spec = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
nccl = next(iter(spec.submodule_search_locations or []), "") if spec else ""
print(torch.__version__, torch.version.cuda, f"cp{sys.version_info.major}{sys.version_info.minor}", nccl, sep="|")
END
) || fail "$python has no torch: make setup"
IFS='|' read -r torch torch_cuda tag nccl <<< "$facts"

cuda_home=
if [ -z "$cpu" ] && [ "$torch_cuda" != None ]; then
    nvcc=$(command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" || command -v nvcc || true)
    if [ -n "$nvcc" ]; then
        toolkit=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
        cuda_home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
        [ -e "$cuda_home/include/cuda_runtime.h" ] \
            || fail "$nvcc has no include/cuda_runtime.h beside it: set CUDA_HOME to the toolkit, or use --cpu"
        [ "${toolkit%%.*}" = "${torch_cuda%%.*}" ] \
            || fail "$nvcc is of CUDA $toolkit, torch of CUDA $torch_cuda: set CUDA_HOME to a toolkit of CUDA \
${torch_cuda%%.*}, or use --cpu for gloo alone"
    fi
fi
transports=gloo${cuda_home:+ and NCCL}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
installed() {
    PYTHONPATH=$target "$python" - "$torch" "$cuda_home" <<'END'
import json
import sys
from pathlib import Path

import horovod
import horovod.torch as hvd

torch, cuda_home = sys.argv[1:]
built_for = json.loads((Path(horovod.__file__).parent / "metadata.json").read_text())["pytorch"]
sys.exit(built_for != torch or not hvd.gloo_built() or bool(cuda_home) != bool(hvd.nccl_built()))
END
}
if installed > /dev/null 2>&1; then
    echo "Horovod $VERSION over $transports is installed already for torch $torch"
    exit 0
fi

patches=("$PATCHES")
[ -n "$cuda_home" ] || patches+=("$WITHOUT_CUDA")
digest=$(printf '%s' "${patches[@]}" | sha256sum | cut -c1-8)
folder=$wheel_dir/torch-$torch-$tag-${transports// and /-}-$digest
mkdir -p "$folder"
wheel=$(find "$folder" -name "horovod-$VERSION-*.whl")

if [ -z "$wheel" ]; then
    for tool in c++ make; do
        command -v $tool > /dev/null || fail "no $tool here: apt install build-essential (or your system's like)"
    done
    log=$folder/build.log
    echo "Building Horovod $VERSION over $transports for torch $torch, some minutes; the log is $log"
    attempt() {
        "$@" >> "$log" 2>&1 || { tail -n 40 "$log" >&2; fail "this failed: $*; the whole log is $log"; }
    }
    : > "$log"
    # CMake 4 refuses the bundled gloo; of setuptools 81 and later some parts are gone that it imports.
    attempt "$python" -m pip install --target "$site/tools" "cmake>=3.25,<4" "setuptools<81" wheel "${NEEDS[@]}"
    export PYTHONPATH=$site/tools PATH=$site/tools/bin:$PATH
    echo "horovod==$VERSION --hash=sha256:$SHA256" > "$site/requirements.txt"
    attempt "$python" -m pip download --no-deps --no-binary horovod --no-build-isolation --require-hashes \
        -d "$site" -r "$site/requirements.txt"
    tar -xzf "$site/horovod-$VERSION.tar.gz" -C "$site"
    for list in "${patches[@]}"; do
        attempt "$python" - "$site/horovod-$VERSION" "$list" <<'END'
import ast
import sys
from pathlib import Path

root, patches = sys.argv[1:]
for name, count, old, new in ast.literal_eval(patches):
    path = Path(root, name)
    text = path.read_text()
    if text.count(old) != count:
        sys.exit(f"{name} has {text.count(old)} times {old!r}, not {count}: this patch does not fit")
    path.write_text(text.replace(old, new))
END
    done
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITHOUT_MPI=1
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_NVTX=1 MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}
    if [ -n "$cuda_home" ]; then
        export CUDA_HOME=$cuda_home CUDAToolkit_ROOT=$cuda_home HOROVOD_CUDA_HOME=$cuda_home
        export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
        if [ -n "$nccl" ]; then
            # The wheel that torch itself loads; the linker wants a name without a version.
            mkdir -p "$site/nccl/lib"
            ln -s "$nccl/include" "$site/nccl/include"
            ln -s "$nccl/lib/libnccl.so.2" "$site/nccl/lib/libnccl.so"
            export HOROVOD_NCCL_HOME=$site/nccl
        fi
    fi
    attempt "$python" -m pip wheel -v --no-build-isolation --no-deps -w "$site/wheels" "$site/horovod-$VERSION"
    unset PYTHONPATH
    mv "$site/wheels"/*.whl "$folder/"
    wheel=$(find "$folder" -name "horovod-$VERSION-*.whl")
fi

# Never another version of a package that is there.
"$python" -m pip install -q --disable-pip-version-check ${target:+--target "$target" --no-deps} "${NEEDS[@]}"
"$python" -m pip install -q --disable-pip-version-check ${target:+--target "$target" --upgrade} \
    --no-deps --force-reinstall "$wheel"
installed || fail "$wheel is installed, but does not load: see the lines above"
echo "installed Horovod $VERSION over $transports for torch $torch into ${target:-$("$python" -c 'import sys; print(sys.prefix)')}"
