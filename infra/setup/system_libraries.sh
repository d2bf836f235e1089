#!/usr/bin/env bash
# The system libraries that wheels do not carry: OpenGL for rendering 3D objects off screen, a compiler for DeepSpeed's ops.
# Installs them when it may (root on a Debian or Ubuntu), else says what is missing and goes on.
set -u
missing=()
has_library() { ldconfig -p 2>/dev/null | grep -q "$1"; }
has_library libEGL.so.1 || missing+=(libegl1)
has_library libGL.so.1 || missing+=(libgl1)
{ ls /usr/lib/*/dri/swrast_dri.so /usr/lib/*/libgallium*.so >/dev/null 2>&1; } || missing+=(libgl1-mesa-dri)
has_library libXrender.so.1 || missing+=(libxrender1)
command -v g++ >/dev/null || missing+=(g++)
command -v git >/dev/null || missing+=(git)
[ "${#missing[@]}" -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing system packages: ${missing[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null && exit 0
fi
echo "Missing system packages: ${missing[*]}. Install them with: sudo apt-get install ${missing[*]}" >&2
exit 0
