# Shared by the two commands of the README: what they need of the machine, and how to get it.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Debian keeps losetup, mkfs and sfdisk where an ordinary user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
MIN_NODE=20.19

say() { printf '\n==> %s\n' "$*"; }
# Ends the script; CLOSING, where it is set, is the last line all the same.
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  if [ -n "${CLOSING:-}" ]; then echo "$CLOSING"; fi
  exit 1
}

# show_help ARGUMENT…  where that is asked for, what the script says of itself at its beginning, and its end.
show_help() {
  case " $* " in *' --help '* | *' -h '*) ;; *) return ;; esac
  sed -n '2,/^[^#]/{/^#/!q; s/^# \{0,1\}//; p}' "$0"
  exit 0
}

# Prints what to put before a command that needs root: nothing for root, `sudo` where there is one; fails otherwise.
as_root() {
  if [ "$(id -u)" = 0 ]; then return 0; fi
  command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; } && echo sudo
}

need_node() {
  command -v node >/dev/null && command -v npm >/dev/null || fail "needs Node.js $MIN_NODE or later, with npm"
  node -e 'const [a, b] = process.versions.node.split("."), [c, d] = process.argv[1].split(".")
    process.exit(+a > +c || (+a === +c && +b >= +d) ? 0 : 1)' "$MIN_NODE" ||
    fail "needs Node.js $MIN_NODE or later, found $(node --version)"
}

# True where a program, or a shared library (libx.so.N), is there.
installed() {
  case $1 in
    lib*.so.*) ldconfig -p | grep -F "$1 " >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# need_programs PROGRAM:PACKAGE…  installs the Debian packages of the programs and libraries that are not there.
need_programs() {
  local pair missing=() packages=() sudo
  for pair in "$@"; do
    if installed "${pair%%:*}"; then continue; fi
    missing+=("${pair%%:*}")
    packages+=("${pair##*:}")
  done
  if [ ${#missing[@]} = 0 ]; then return 0; fi
  say "Installing Debian packages: ${packages[*]}"
  command -v apt-get >/dev/null || fail "needs ${missing[*]} (on Debian in the packages ${packages[*]})"
  sudo=$(as_root) || fail "needs ${missing[*]}; as root: apt-get install ${packages[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
  if [ -n "$sudo" ]; then apt=("$sudo" "${apt[@]}"); fi
  "${apt[@]}" update || fail 'apt-get update failed'
  "${apt[@]}" install -y --no-install-recommends "${packages[@]}" || fail "could not install ${packages[*]}"
  hash -r
}

# True where $1 is there and newer than all the other files.
newer() {
  local made=$1 file
  shift
  [ -e "$made" ] || return 1
  for file in "$@"; do
    if [ "$file" -nt "$made" ]; then return 1; fi
  done
}

need_npm_packages() {
  if newer node_modules/.package-lock.json package-lock.json; then return 0; fi
  say 'Installing npm packages'
  npm ci --no-audit --no-fund || fail 'npm ci failed'
  touch node_modules/.package-lock.json
}

# Says what stands in the way of any mount.
check_fuse() {
  if [ ! -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then modprobe fuse 2>/dev/null || true; fi
  [ -e /dev/fuse ] || { echo 'No /dev/fuse on this machine: nothing can be mounted (in a container: --device /dev/fuse).' >&2; return 1; }
}

# The command and the library, in dist/, where they are older than what they are made of.
build_command() {
  local sources=(lib package.json tsconfig*.json scripts/*.mjs node_modules/.package-lock.json)
  if [ -e dist/.built ] && [ -z "$(find "${sources[@]}" -newer dist/.built -print -quit)" ]; then return 0; fi
  say 'Building'
  npm run --silent build && touch dist/.built
}

# The same, and the library with its tests, in build/.
build_tests() {
  build_command && node_modules/.bin/tsc -p tsconfig.json
}
