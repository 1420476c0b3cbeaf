#!/usr/bin/env bash
# Start a real SLURM on loopback, of one node with two pretend GPUs or of several that are all this machine, inside
# DIRECTORY.
#
#   up.sh DIRECTORY [CPUS [NODES]]   then: export SLURM_CONF=DIRECTORY/slurm.conf PATH=DIRECTORY/bin:$PATH
#   down.sh DIRECTORY                stop it
#
# Needs the programs of Debian's slurmctld, slurmd, slurm-client and munge, and nothing else: no systemd, no cgroups, no
# slurmdbd. A SLURM that is already on this machine is left alone: configuration, key, sockets and ports are our own.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
[ $# -ge 1 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
mkdir -p "$1"
D=$(cd "$1" && pwd)
CPUS=${2:-$(nproc)}
NODES=${3:-1}
HOST=$(hostname -s)
USER_NAME=$(id -un)
for program in slurmctld slurmd munged mungekey sbatch; do
  command -v "$program" >/dev/null || { echo "$program is not installed" >&2; exit 3; }
done
read -r CTLD_PORT D_PORTS < <(python3 - "$NODES" <<'PY'
import socket, sys
taken = [socket.socket() for _ in range(1 + int(sys.argv[1]))]
for one in taken:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in taken))
PY
)
# several nodes of one machine have names of their own, and a slurmd each
NAMES=$HOST
[ "$NODES" = 1 ] || NAMES=$(seq --format="node%g" --separator=" " "$NODES")

mkdir -p "$D/state" "$D/spool"
cat > "$D/slurm.conf" <<CONF
ClusterName=vrm
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CTLD_PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$USER_NAME
SlurmdUser=$USER_NAME
AuthType=auth/munge
# a requeued job is held back for as long as a credential lives, 120 s by default
AuthInfo=socket=$D/munge.socket,cred_expire=5
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.%n.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.%n.log
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
# CPUS may be more than there are
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
# ends a job that outgrows its memory, without cgroups
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# squeue is asked for the state of finished jobs
MinJobAge=3600
KillWait=2
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=24:00:00 State=UP
CONF
MEMORY=$(awk '/MemAvailable/{print int($2/1024)}' /proc/meminfo)
ports=($D_PORTS)
for name in $NAMES; do
  echo "NodeName=$name NodeHostname=$HOST NodeAddr=127.0.0.1 Port=${ports[0]} CPUs=$CPUS RealMemory=$MEMORY Gres=gpu:2"
  ports=("${ports[@]:1}")
done >> "$D/slurm.conf"
for name in $NAMES; do
  printf 'NodeName=%s Name=gpu File=%s\n' "$name" /dev/null "$name" /dev/zero
done > "$D/gres.conf"
export SLURM_CONF="$D/slurm.conf"
# Snakemake's plugin takes every SLURM_ variable away from the srun inside a job, and this one with it
mkdir -p "$D/bin"
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$D/bin/srun"
chmod +x "$D/bin/srun"

[ -s "$D/munge.key" ] || { mungekey --create --keyfile="$D/munge.key"; chmod 600 "$D/munge.key"; }
munged --force --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" \
  --log-file="$D/munged.log" --seed-file="$D/munge.seed" 2>> "$D/munged.log"
slurmctld -f "$SLURM_CONF" 2>> "$D/slurmctld.log"
for name in $NAMES; do
  mkdir -p "$D/spool/$name"
  slurmd -N "$name" -f "$SLURM_CONF" 2>> "$D/slurmd.$name.log"
done
for _ in $(seq 240); do
  [ "$(sinfo --noheader --format=%t%D 2>/dev/null)" = "idle$NODES" ] && exit 0
  sleep 0.5
done
echo "SLURM does not come up; the last lines of its logs:" >&2
tail -n 20 "$D"/*.log >&2
exit 1
