#!/usr/bin/env bash
# The system packages that wheels do not carry: OpenGL for rendering 3D objects off screen, Python's headers and a compiler for
# DeepSpeed's ops, Python's shared library for Triton's python backend. Installs them when it may (root on a Debian or Ubuntu),
# else says what is missing: without OpenGL only rendering fails, so that is a warning; the rest ends the set-up.
set -u
python=${1:-python3}
export PATH="$PATH:/usr/sbin:/sbin"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || { echo "no Python at '$python'" >&2; exit 1; }
has_library() { ldconfig -p 2>/dev/null | grep -q "$1"; }
find_missing() {
  needed=() wanted=()
  "$python" -c 'import ensurepip, venv' 2>/dev/null || needed+=("python$version-venv")
  "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    needed+=("python$version-dev")
  has_library "libpython$version.so.1.0" ||
    "$python" -c "import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_config_var('LIBDIR') + '/libpython$version.so.1.0'))" ||
    needed+=("libpython$version")
  command -v g++ >/dev/null || needed+=(g++)
  command -v git >/dev/null || needed+=(git)
  has_library libEGL.so.1 || wanted+=(libegl1)
  has_library libGL.so.1 || wanted+=(libgl1)
  ls /usr/lib/*/dri/swrast_dri.so /usr/lib/*/libgallium*.so 2>/dev/null | grep -q . || wanted+=(libgl1-mesa-dri)
  has_library libXrender.so.1 || wanted+=(libxrender1)
}
find_missing
missing=("${needed[@]}" "${wanted[@]}")
[ "${#missing[@]}" -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing system packages: ${missing[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  find_missing
  missing=("${needed[@]}" "${wanted[@]}")
fi
[ "${#missing[@]}" -eq 0 ] && exit 0
echo "Missing system packages: ${missing[*]}. Install them with: sudo apt-get install ${missing[*]}" >&2
[ "${#needed[@]}" -eq 0 ]
