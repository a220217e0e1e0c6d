#!/usr/bin/env bash
# Makes sure a Vulkan driver is there that SAPIEN can render with; installs Mesa's software driver where none is.
# Does nothing where one is found, so that calling it twice changes nothing.
# STARE_SKIP_VULKAN=1 skips it (the toy environment and the `state` variant of physics need no camera).
set -euo pipefail

[ "${STARE_SKIP_VULKAN:-0}" = 1 ] && exit 0

say() { printf 'setup: %s\n' "$1" >&2; }

# A GPU's own driver is always the better one; Mesa older than 23.2 lacks descriptorBindingPartiallyBound (SAPIEN: "Failed to find a supported physical device").
has_gpu_driver() { ls /usr/share/vulkan/icd.d/nvidia_icd*.json /etc/vulkan/icd.d/nvidia_icd*.json /usr/local/nvidia/share/vulkan/icd.d/*.json >/dev/null 2>&1; }
has_loader() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; }
mesa_version() { dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || echo 0; }
has_mesa() { command -v dpkg >/dev/null && dpkg --compare-versions "$(mesa_version)" ge 23.2; }
# Outside Debian's family the version is not asked for: any driver that is registered counts (`stare doctor` renders with it).
has_other_driver() { ! command -v dpkg >/dev/null && ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json 2>/dev/null | grep -q .; }

if has_loader && { has_gpu_driver || has_mesa || has_other_driver; }; then exit 0; fi

manual='no Vulkan driver that SAPIEN can use was found, and it cannot be installed from here.
  Debian 12:      sudo apt-get install -t bookworm-backports mesa-vulkan-drivers libvulkan1   (with bookworm-backports among the apt sources)
  Debian 13+, Ubuntu 24.04+:  sudo apt-get install mesa-vulkan-drivers libvulkan1
  Fedora:         sudo dnf install mesa-vulkan-drivers vulkan-loader
  NVIDIA GPU:     the driver brings Vulkan; install libvulkan1 (the loader) beside it
Then run make again. To go on without cameras (toy environment, tests of the pure parts): STARE_SKIP_VULKAN=1 make ...'

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then say "$manual"; exit 1; fi

say 'installing the Vulkan loader and driver (apt)'
. /etc/os-release
target=()
export DEBIAN_FRONTEND=noninteractive
if has_gpu_driver; then
  packages=(libvulkan1)
else
  packages=(mesa-vulkan-drivers libvulkan1)
  if [ "${VERSION_CODENAME:-}" = bookworm ]; then
    list=/etc/apt/sources.list.d/bookworm-backports.list
    [ -e "$list" ] || echo 'deb http://deb.debian.org/debian bookworm-backports main' >"$list"
    target=(-t bookworm-backports)
  fi
fi
apt-get update -qq || { say "$manual"; exit 1; }
apt-get install -y -qq --no-install-recommends "${target[@]}" "${packages[@]}" >/dev/null || { say "$manual"; exit 1; }
ldconfig
if has_gpu_driver || has_mesa; then say 'Vulkan driver ready'; else say "$manual"; exit 1; fi
