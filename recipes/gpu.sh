#!/usr/bin/env bash
# Everything here that wants an accelerator, unattended, in order of value: `make gpu CIFAR10=... CIFAR100=...`
#
# CIFAR10 and CIFAR100 are folders as `rdpnet train` takes them. Results go to OUTPUT (runs/gpu) as they come, one
# Markdown file a table; a step that fails is named in OUTPUT/failed.txt and the others go on. The same command resumes:
# finished runs are left out, unfinished ones go on from their last checkpoint. EPOCHS, SEEDS and DEVICE change what their
# names say (EPOCHS=0.01 DEVICE=cpu tries it all on a CPU, into runs/gpu_0.01). JOBS runs of a table go on at the same
# time (the first four tables have two): with more of them all are done earlier, with fewer the first.
set -uo pipefail
: "${CIFAR10:?name the folder with CIFAR-10: make gpu CIFAR10=... CIFAR100=...}"
: "${CIFAR100:?name the folder with CIFAR-100: make gpu CIFAR10=... CIFAR100=...}"
CIFAR10=$(realpath -m -- "$CIFAR10") CIFAR100=$(realpath -m -- "$CIFAR100")
OUTPUT=${OUTPUT:+$(realpath -m -- "$OUTPUT")}
cd "$(dirname "$0")/.."
bin=.venv/bin device=${DEVICE:-cuda}
output=${OUTPUT:-runs/gpu${EPOCHS:+_$EPOCHS}} # a trial is not in the way of the real runs
options=(--device "$device" ${EPOCHS:+--epochs "$EPOCHS"})

mkdir -p "$output" && : >>"$output/failed.txt" || exit 1
# held by the steps too: a step that outlives this script trains on, and another one would train the same beside it
exec 9>"$output/.lock"
flock -n 9 || {
    echo "a run of this script, or a step that outlived it, is at work in $output: wait for it, or end it" >&2
    exit 1
}
: >"$output/failed.txt"

# what is wrong with data or device is told now rather than in an hour
$bin/python - "$device" "$CIFAR10" 10 "$CIFAR100" 100 <<'END' || exit 2
import sys
import torch
from rdpnet_timm.train.data import read_data
device, *sets = sys.argv[1:]
try:
    torch.zeros(1, device=device).item()
    for source, expected in zip(sets[::2], map(int, sets[1::2])):
        found = len(read_data(source)[0].classes)
        if found != expected:
            sys.exit(f"'{source}' has {found} classes, expected CIFAR-{expected}: name the folder that holds it")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
END

if [ "$device" != cpu ]; then
    if $bin/python -c 'import sys, torch; torch.compile(torch.sin)(torch.ones(8, device=sys.argv[1]))' "$device" \
        >"$output/compile.log" 2>&1; then
        options+=(--compile)
    else
        echo "torch.compile does not work here, as $output/compile.log says: without it all takes two to three times as long"
    fi
fi

told='' child='' failures=()

end() { # end STATUS: an order to end reaches the step, which writes its checkpoints; no other step begins
    told=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap 'end 129' HUP
trap 'end 130' INT
trap 'end 143' TERM
trap '' PIPE # who reads this may go; the work goes on

step() { # step NAME COMMAND...: run it, keep what it prints
    [ -z "$told" ] || exit "$told"
    echo "== $1"
    "${@:2}" > >(exec tee -p -i -a "$output/$1.log") 2>&1 &
    child=$!
    [ -z "$told" ] || end "$told"
    wait "$child"
    local status=$?
    if [ -n "$told" ]; then
        wait "$child" # the first ended with the signal
        exit "$told"
    fi
    child=''
    case $status in
    0) ;;
    129 | 130 | 143) exit "$status" ;; # it was told to end by itself
    *)
        failures+=("$1")
        echo "$1" | tee -p -a "$output/failed.txt"
        ;;
    esac
}

table() { # table NAME NUMBER DATA COLUMN SEEDS RECIPE [OPTION...]
    step "$1" $bin/rdpnet table "$2" "$3" -o "$output/$1" --column "$4" --data-name "${4% %}" --seeds $5 \
        --jobs "${JOBS:-4}" --recipe "$6" "${@:7}" "${options[@]}"
    $bin/rdpnet table "$2" --print -o "$output/$1" --column "$4" >"$output/$1.part" &&
        mv "$output/$1".{part,md} || rm -f "$output/$1.part"
}

# what an accelerator computes is what a CPU computes
step checks env RDPNET_TEST_DEVICE="$device" $bin/python -m pytest -n 0 -q tests/test_accelerator.py

# the paper's Table 3, both data sets, the narrow networks first; the weights are left in the folders of the runs
for rows in 2 6; do
    for recipe in ours paper; do
        table "table3_cifar10_$recipe" 3 "$CIFAR10" "CIFAR-10 %" 0 $recipe --rows $rows
        table "table3_cifar100_$recipe" 3 "$CIFAR100" "CIFAR-100 %" 0 $recipe --rows $rows
    done
done

# the paper's ablation
table table8 8 "$CIFAR100" "CIFAR-100 %" "${SEEDS:-0 1 2}" paper

[ -z "$told" ] || exit "$told"
if [ ${#failures[@]} -gt 0 ]; then
    echo "failed: ${failures[*]}; the same command tries again"
    exit 1
fi
