#!/usr/bin/env bash
# Gets what compiles CUDA code (nvcc, its back end, headers, the static runtime) from PyPI into one
# folder, and prints the variables that the build reads. Needs python3 with pip and a host C++
# compiler; no driver, no GPU, no root.
#
#   eval "$(scripts/cuda-toolkit.sh)"           # into target/cuda-toolkit
#   eval "$(scripts/cuda-toolkit.sh FOLDER)"    # or $FERRY_CUDA_TOOLKIT
#   scripts/cuda-toolkit.sh --with libraries    # also cuBLAS, cuRAND, NVRTC: to run on a GPU
#   scripts/cuda-toolkit.sh --with sanitizer    # also compute-sanitizer
#
# What is there already is left as it is. Nothing is printed to stdout unless all is well.
#
# CUDA 13.0, not the newest: a driver of the 580 series takes its PTX.
set -euo pipefail

compiler=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)
libraries=(
    nvidia-cublas==13.1.0.3
    nvidia-curand==10.4.0.35
    nvidia-cuda-nvrtc==13.0.88
)
sanitizer=(nvidia-cuda-sanitizer-api==13.0.85)

fail() { printf 'cuda-toolkit: %s\n' "$*" >&2; exit 1; }

wanted=("${compiler[@]}")
folder=${FERRY_CUDA_TOOLKIT:-$(dirname "$0")/../target/cuda-toolkit}
while (($#)); do
    case $1 in
        --with)
            case ${2:-} in
                libraries) wanted+=("${libraries[@]}") ;;
                sanitizer) wanted+=("${sanitizer[@]}") ;;
                *) fail "--with takes 'libraries' or 'sanitizer', not '${2:-}'" ;;
            esac
            shift ;;
        -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit ;;
        -*) fail "unknown option '$1' (see --help)" ;;
        *) folder=$1 ;;
    esac
    shift
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# pip leaves a folder NAME-VERSION.dist-info behind, last of all.
missing=()
for package in "${wanted[@]}"; do
    name=${package%%==*}
    [[ -d $folder/${name//-/_}-${package##*==}.dist-info ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    printf 'cuda-toolkit: fetching %s into %s\n' "${missing[*]}" "$folder" >&2
    "${PYTHON:-python3}" -m pip --version >/dev/null 2>&1 ||
        fail "needs ${PYTHON:-python3} with pip (Debian: apt install python3-pip)"
    # pip --target replaces folders that several packages share; so each set goes to a folder of its
    # own first. In that order an interruption leaves nothing that looks complete.
    staging=$(mktemp -d "$folder/.staging.XXXXXX")
    trap 'rm -rf "$staging"' EXIT
    PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --no-deps --no-compile --target "$staging" "${missing[@]}" >&2 ||
        fail "pip could not fetch the packages: is PyPI within reach?"
    cp -a "$staging/nvidia" "$folder/"
    cp -a "$staging"/*.dist-info "$folder/"
fi

home=$folder/nvidia/cu13
[[ -e $home/lib64 ]] || ln -s lib "$home/lib64"
[[ -x $home/bin/nvcc ]] || fail "no $home/bin/nvcc after all: remove $folder and try again"
command -v "${NVCC_CCBIN:-g++}" >/dev/null ||
    fail "nvcc needs a host C++ compiler (Debian: apt install g++; or name one in NVCC_CCBIN)"

# candle's own kernels are compiled for one architecture. Its PTX also runs on newer ones; its kernels
# for quantized weights run on this generation only (docs/cuda.md).
cat <<EOF
export CUDA_HOME='$home'
export CUDA_PATH='$home'
export NVCC='$home/bin/nvcc'
export CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-80}'
export CUDAFORGE_THREADS='${CUDAFORGE_THREADS:-$(nproc)}'
EOF
