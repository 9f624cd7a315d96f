#!/usr/bin/env bash
# A Slurm of one node, this machine, for tests: `slurm.sh start` and `slurm.sh stop`, each as often as you like.
#
# From Debian's packages: apt-get install slurm-wlm munge. No systemd, no cgroups, no other account than yours, and nothing
# outside one directory, KD_SLURM or /tmp/kd-slurm-UID. `start` prints the line that makes sbatch and the others find it.
set -euo pipefail

dir=${KD_SLURM:-/tmp/kd-slurm-$(id -u)}
host=$(hostname -s)
port=$((20000 + $(cksum <<< "$dir" | cut -d " " -f 1) % 10000 * 2))  # two, which another directory will not have
cpus=$(($(nproc) > 2 ? $(nproc) : 2))
export SLURM_CONF=$dir/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

configure() {
    mkdir -p "$dir"/{state,spool,log}
    chmod 700 "$dir"
    if [ ! -f "$dir/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    fi
    # A requeued job waits for cred_expire, by default two minutes, and then for sched_interval, by default one.
    cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus
PartitionName=any Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=$host PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
CONF
}

up() { [ -f "$dir/$1.pid" ] && kill -0 "$(cat "$dir/$1.pid")" 2> /dev/null; }

start() {
    for program in munged slurmctld slurmd; do
        command -v $program > /dev/null || { echo "no $program: apt-get install slurm-wlm munge" >&2; exit 1; }
    done
    configure
    up munged || munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
    up slurmctld || slurmctld
    up slurmd || slurmd -N "$host"
    for _ in $(seq 100); do
        case $(sinfo --noheader --partition any --format %t 2> /dev/null) in
            idle | mix | alloc) echo "export SLURM_CONF=$SLURM_CONF" && return ;;
        esac
        sleep 0.2
    done
    echo "Slurm did not come up, see $dir/log" >&2
    tail -n 5 "$dir"/log/*.log >&2
    exit 1
}

stop() {
    [ -f "$SLURM_CONF" ] || return 0
    if up slurmctld && up munged; then
        scancel --user "$(id -un)" 2> /dev/null || true
        for _ in $(seq 50); do
            [ -z "$(squeue --noheader 2> /dev/null)" ] && break
            sleep 0.2
        done
    fi
    for program in slurmd slurmctld munged; do
        up $program || continue
        pid=$(cat "$dir/$program.pid")
        kill "$pid"
        for _ in $(seq 50); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.2
        done
    done
    rm -rf "$dir"
}

case ${1-} in
    start | stop) "$1" ;;
    *) echo "usage: $0 start|stop" >&2 && exit 2 ;;
esac
