#!/usr/bin/env bash
# configs/slurm on a cluster of one machine, this one: starts munge, slurmctld and slurmd from the distribution's
# packages (slurm-wlm, munge; root), submits a small comparison, waits, looks at the result, and stops what it started.
#
#     tests/slurm/check.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/sparsam}")
out=$(realpath -m target/slurm-check)
rm -rf "$out"
mkdir -p "$out"/{state,spool,munge}
host=$(hostname -s)
stop() {
  for name in slurmd slurmctld munged; do
    [ -e "$out/$name.pid" ] && kill "$(cat "$out/$name.pid")" 2> /dev/null || true
  done
}
trap stop EXIT

dd if=/dev/urandom of="$out/munge/key" bs=128 count=1 status=none
chmod 0400 "$out/munge/key"
chmod 0700 "$out/munge"
munged --force --key-file="$out/munge/key" --socket="$out/munge.socket" --pid-file="$out/munged.pid" \
  --log-file="$out/munge/log" --seed-file="$out/munge/seed"
cat > "$out/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$out/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$out/slurmctld.pid
SlurmdPidFile=$out/slurmd.pid
SlurmctldLogFile=$out/slurmctld.log
SlurmdLogFile=$out/slurmd.log
StateSaveLocation=$out/state
SlurmdSpoolDir=$out/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
export SLURM_CONF=$out/slurm.conf
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 30); do
  sinfo -h -o %T 2> /dev/null | grep -q idle && break
  sleep 1
done
sinfo

cat > "$out/compare.yaml" <<YAML
recipe: configs/quickstart.yaml
set: [epochs=null, max_steps=8, eval_steps=4, eval_generation=null, country=DEU, logging.tensorboard=false]
arms:
  full: [method=full, learning_rate=5e-4]
  LoRA r 4: [lora.r=4, lora.alpha=8]
repeats: 2
pause_seconds: 0
warm_up_seconds: 0
output_dir: $out/compare
YAML
SPARSAM=$program SPARSAM_LOGS=$out/logs configs/slurm/compare.sh "$out/compare.yaml"
for _ in $(seq 300); do
  [ -z "$(squeue -h)" ] && break
  sleep 1
done
squeue
cat "$out"/logs/*-result.log
test "$(find "$out/compare/arms" -name run.json | wc -l)" = 4
test -s "$out/compare/comparison.json"
"$program" ledger "$out/compare"
echo "four runs and their result through Slurm $(sinfo --version | cut -d' ' -f2)"
