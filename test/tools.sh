#!/usr/bin/env bash
# Installs what the tests need beside Go, as far as it is missing (Debian and Ubuntu
# packages). A tool is there if it works.
#
#   test/tools.sh compiler   what the race detector needs
#   test/tools.sh clients    what the end-to-end tests need
#   test/tools.sh brokers    what the tests with real brokers need
#   test/tools.sh            all
set -euo pipefail
cd "$(dirname "$0")/.."

venv=bin/clients # where aws and boto3 go if there are no packages of them; the tests look there, too
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compiles() { # a C compiler alone cannot link without libc6-dev
  printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' >"$scratch/probe.c"
  gcc -o "$scratch/probe" "$scratch/probe.c" && "$scratch/probe"
}
any() { # ARGUMENT... -- COMMAND...: one of the commands works with the arguments
  local arguments=()
  while [ "$1" != -- ]; do
    arguments+=("$1")
    shift
  done
  shift
  local command
  for command; do
    if "$command" "${arguments[@]}"; then return 0; fi
  done
  return 1
}

found() { # PATTERN: a program, where it is not on the path
  compgen -G "$1" >/dev/null
}

works() { # TOOL
  case $1 in
  gcc) compiles ;;
  aws) any --version -- aws /usr/bin/aws "$venv/bin/aws" ;;
  boto3) any -c 'import boto3' -- python3 /usr/bin/python3 "$venv/bin/python3" ;;
  git | curl | s3cmd) "$1" --version ;;
  rclone | restic) "$1" version ;;
  redis-server) redis-server --version ;;
  mosquitto) found /usr/sbin/mosquitto ;;
  rabbitmq-server) found '/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server' && found "$(command -v epmd)" ;;
  postgresql) found '/usr/lib/postgresql/*/bin/postgres' && found '/usr/lib/postgresql/*/bin/initdb' ;;
  esac >/dev/null 2>&1
}

packages_of() { # TOOL
  case $1 in
  gcc) echo gcc libc6-dev ;;
  aws) echo awscli ;;
  boto3) echo python3-boto3 ;;
  *) echo "$1" ;;
  esac
}

missing() { # TOOL...: those that do not work
  local tool
  for tool; do
    works "$tool" || echo "$tool"
  done
}

apt() { # as root, patient with mirrors and with another apt
  local sudo=
  if [ "$(id -u)" -ne 0 ]; then sudo=sudo; fi
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 "$@"
}
install() { apt install -y --no-install-recommends "$@"; }

case ${1:-all} in
compiler) tools=(gcc) ;;
clients) tools=(git curl rclone s3cmd restic aws boto3) ;;
brokers) tools=(rabbitmq-server postgresql redis-server mosquitto) ;;
all) tools=(gcc git curl rclone s3cmd restic aws boto3 rabbitmq-server postgresql redis-server mosquitto) ;;
*)
  echo "usage: test/tools.sh [compiler|clients|brokers]" >&2
  exit 2
  ;;
esac

mapfile -t lacking < <(missing "${tools[@]}")
if [ ${#lacking[@]} -eq 0 ]; then
  echo "all tools are there: ${tools[*]}"
  exit 0
fi
echo "installing ${lacking[*]}"
# A source that cannot be reached need not be one that is needed: what counts is what works at the end.
apt update || echo "apt-get update failed; going on with the lists that there are"
packages=()
for tool in "${lacking[@]}"; do
  read -ra of < <(packages_of "$tool")
  packages+=("${of[@]}")
done
if ! install "${packages[@]}"; then
  echo "not all at once: one by one"
  for tool in "${lacking[@]}"; do
    read -ra of < <(packages_of "$tool")
    install "${of[@]}" || echo "no package for $tool"
  done
fi

mapfile -t python < <(
  for tool in "${tools[@]}"; do
    case $tool in aws | boto3) missing "$tool" ;; esac
  done
)
if [ ${#python[@]} -gt 0 ]; then
  echo "from PyPI: ${python[*]}"
  python3 -m venv "$venv" || { install python3-venv && python3 -m venv "$venv"; } || true
  if [ -x "$venv/bin/python3" ]; then
    "$venv/bin/python3" -m pip install --quiet --retries 5 awscli boto3 || true
  fi
fi

mapfile -t lacking < <(missing "${tools[@]}")
if [ ${#lacking[@]} -gt 0 ]; then
  echo "still missing or not working: ${lacking[*]}" >&2
  exit 1
fi
