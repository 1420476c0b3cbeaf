#!/usr/bin/env bash
# Stop the SLURM that up.sh started in DIRECTORY, and its jobs; nothing else is touched.
set -uo pipefail
D=$(cd "$1" && pwd) || exit 2
export SLURM_CONF="$D/slurm.conf"
scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 20); do
  [ -z "$(squeue --noheader 2>/dev/null)" ] && break
  sleep 0.5
done
for file in "$D"/slurmd.*.pid "$D/slurmctld.pid" "$D/munged.pid"; do
  pid=$(cat "$file" 2>/dev/null) || continue
  kill "$pid" 2>/dev/null
  for _ in $(seq 20); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
done
exit 0
