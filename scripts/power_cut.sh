#!/bin/sh
# Simulate power failures of a disk, after a run and during runs: data that was not written to the disk is lost.
#
#     sudo scripts/power_cut.sh            # one cut, 8 seconds after a run ended with exit code 0
#     sudo scripts/power_cut.sh 20         # and 20 cuts at random moments of runs, each resumed by the same command
#
# The disk is an ext4 file system in a file (a loop device). A cut uses ext4's own ioctl. It stops the file system and
# does not write the data that is still in memory. Then the disk is mounted again, and the same command runs again and
# must finish the run. The exit code is 0 if every run ended with the results of a run without a cut. Model and data are
# generated. The script needs root, mkfs.ext4 and Linux. A cut takes about ten seconds.
set -eu

cuts=${1:-0}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
export PYTHONPATH="$here" PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
[ "$(id -u)" = 0 ] || { echo "power_cut.sh: mounting a disk needs root"; exit 2; }
command -v mkfs.ext4 > /dev/null || { echo "power_cut.sh: there is no mkfs.ext4"; exit 2; }

work=$(mktemp -d)
disk=$work/disk
export FLEXLORA_CACHE="$work/cache"
mkdir "$disk"
trap 'umount "$disk" 2> /dev/null || true; rm -rf "$work"' EXIT

"$python" -c "
import sys, pathlib
from flexlora.testing.small_data import write_bert, write_cola
write_cola(pathlib.Path(sys.argv[1], 'glue')), write_bert(pathlib.Path(sys.argv[1], 'bert'))" "$work" 2> /dev/null

run() {  # run OUTPUT_ROOT: the output of the command is in $work/said
    "$python" -m flexlora.cli.run task=glue/cola model=local "model.path=$work/bert" "task.data_dir=$work/glue" \
        method=flexlora variant=cut training.epochs=3 training.batch_size=8 training.learning_rate=5e-3 \
        training.checkpoint_every=2 training.log_every=2 "output_root=$1" > "$work/said" 2>&1
}

new_disk() {
    umount "$disk" 2> /dev/null || true
    truncate -s 0 "$work/image" && truncate -s 64M "$work/image"
    mkfs.ext4 -q "$work/image"
    mount -o loop "$work/image" "$disk"
}

stop_disk() {  # data that was not written to the disk is lost
    "$python" -c "
import fcntl, os, struct, sys
SHUTDOWN, WITHOUT_THE_LOG = 0x8004587D, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), SHUTDOWN, struct.pack('I', WITHOUT_THE_LOG))" "$disk"
}

start_disk() {
    umount "$disk"
    mount -o loop "$work/image" "$disk"
}

check() {  # the files of finished runs match their records, and the results equal those of the run without a cut
    "$python" -c "
import sys, pathlib
from flexlora.doctor.tree_check import check_tree
from flexlora.testing.comparing import differences
report = check_tree(pathlib.Path(sys.argv[1]))
(whole,), (other,) = (list(pathlib.Path(root).rglob('seed0')) for root in sys.argv[2:])
found = differences(whole, other)
print(report, *found, sep='\n')
sys.exit(bool(found) or not report.is_whole)" "$disk" "$work/whole" "$disk"
}

fail() { echo "power_cut.sh: $1"; cat "$work/said"; exit 1; }

run "$work/whole" || fail "the run without a cut failed"

new_disk
run "$disk" || fail "the run failed"
sleep 8
stop_disk
start_disk
run "$disk" || fail "8 s after the end: the same command fails"
echo "8 s after the end: $(tail -n 1 "$work/said")"
check || exit 1

for number in $(seq "$cuts"); do
    new_disk
    lines=$((number * 7 % 19)) # lines of metrics.jsonl before the cut; a run has about 18
    run "$disk" &
    process=$!
    until [ "$(cat "$disk"/local/glue/cola/bert/flexlora/cut/seed0/metrics.jsonl 2> /dev/null | wc -l)" -ge "$lines" ] ||
        ! kill -0 "$process" 2> /dev/null; do
        sleep 0.02
    done
    sleep "0.$((number * 37 % 100))"
    stop_disk
    wait "$process" || true  # the run cannot write any more, and ends with an error
    start_disk
    run "$disk" || fail "cut $number, $lines lines: the same command fails"
    echo "cut $number, $lines lines: $(grep -o 'resumed after step [0-9]*\|is finished: skipped' "$work/said" || echo "began again")"
    check || exit 1
done
