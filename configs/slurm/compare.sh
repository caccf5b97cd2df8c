#!/bin/bash
# Runs the arms of a comparison as a job array on a Slurm cluster, and puts their figures side by side at the end.
#
# Needs:    sparsam on the nodes' PATH (or SPARSAM=/path/to/it), a folder that all nodes see
# Run:      configs/slurm/compare.sh configs/compare-city-trees.yaml [options of sbatch, such as --partition=gpu]
# Then:     the comparison's output_dir; the last job prints what `sparsam compare` prints
#
# One run at a time (%1), each with its node for itself: meters count a whole machine, so two arms on one node
# would each count the other's energy. Where all nodes are of one kind and --exclusive is given, `%1` may go; arms
# that were measured on different hardware are told apart and not compared. A run that Slurm kills or that runs out
# of time is made again by submitting the same comparison again; what it drew stays for `sparsam ledger`.
set -euo pipefail
comparison=${1:?usage: $0 COMPARISON.yaml [options of sbatch]}
shift
sparsam=${SPARSAM:-sparsam}
runs=$("$sparsam" compare "$comparison" --dry-run | wc -l)
logs=${SPARSAM_LOGS:-slurm-logs}
mkdir -p "$logs"
here=$(cd "$(dirname "$0")" && pwd)
export SPARSAM=$sparsam COMPARISON=$comparison
array=$(sbatch --parsable --array="1-$runs%1" --exclusive --output="$logs/%A-%a.log" "$@" "$here/run.sbatch")
echo "runs: job $array, $runs tasks"
result=$(sbatch --parsable --dependency="afterok:$array" --output="$logs/%j-result.log" "$@" "$here/result.sbatch")
echo "result: job $result, in $logs/$result-result.log"
