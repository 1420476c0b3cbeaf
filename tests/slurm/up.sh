#!/usr/bin/env bash
# Start a real one-node SLURM with two pretend GPUs on loopback, all of it inside DIRECTORY.
#
#   up.sh DIRECTORY [CPUS]      then: export SLURM_CONF=DIRECTORY/slurm.conf PATH=DIRECTORY/bin:$PATH
#   down.sh DIRECTORY           stop it
#
# Needs the programs of Debian's slurmctld, slurmd, slurm-client and munge, and nothing else: no systemd, no cgroups, no
# slurmdbd. A SLURM that is already on this machine is left alone: configuration, key, sockets and ports are our own.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
mkdir -p "$1"
D=$(cd "$1" && pwd)
CPUS=${2:-$(nproc)}
HOST=$(hostname -s)
USER_NAME=$(id -un)
for program in slurmctld slurmd munged mungekey sbatch; do
  command -v "$program" >/dev/null || { echo "$program is not installed" >&2; exit 3; }
done
read -r CTLD_PORT D_PORT < <(python3 - <<'PY'
import socket
taken = [socket.socket() for _ in range(2)]
for one in taken:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in taken))
PY
)

mkdir -p "$D/state" "$D/spool"
cat > "$D/slurm.conf" <<CONF
ClusterName=vrm
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CTLD_PORT
SlurmdPort=$D_PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$USER_NAME
SlurmdUser=$USER_NAME
AuthType=auth/munge
# a requeued job is held back for as long as a credential lives, 120 s by default
AuthInfo=socket=$D/munge.socket,cred_expire=5
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.log
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
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
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$(awk '/MemAvailable/{print int($2/1024)}' /proc/meminfo) Gres=gpu:2
PartitionName=main Nodes=$HOST Default=YES MaxTime=24:00:00 State=UP
CONF
cat > "$D/gres.conf" <<CONF
NodeName=$HOST Name=gpu File=/dev/null
NodeName=$HOST Name=gpu File=/dev/zero
CONF
export SLURM_CONF="$D/slurm.conf"
# Snakemake's plugin takes every SLURM_ variable away from the srun inside a job, and this one with it
mkdir -p "$D/bin"
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$D/bin/srun"
chmod +x "$D/bin/srun"

[ -s "$D/munge.key" ] || { mungekey --create --keyfile="$D/munge.key"; chmod 600 "$D/munge.key"; }
munged --force --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" \
  --log-file="$D/munged.log" --seed-file="$D/munge.seed" 2>> "$D/munged.log"
slurmctld -f "$SLURM_CONF" 2>> "$D/slurmctld.log"
slurmd -f "$SLURM_CONF" 2>> "$D/slurmd.log"
for _ in $(seq 240); do
  [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && exit 0
  sleep 0.5
done
echo "SLURM does not come up; the last lines of its logs:" >&2
tail -n 20 "$D"/*.log >&2
exit 1
