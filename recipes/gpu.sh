#!/usr/bin/env bash
# Everything here that wants an accelerator, unattended, in order of value: `make gpu CIFAR10=... CIFAR100=...`
#
# CIFAR10 and CIFAR100 are folders as `rdpnet train` takes them. Results go to OUTPUT (runs/gpu) as they come, one
# Markdown file a table; a step that fails is named in OUTPUT/failed.txt and the others go on. The same command resumes:
# finished runs are left out, unfinished ones go on from their last checkpoint. EPOCHS, SEEDS and DEVICE change what their
# names say (EPOCHS=0.01 DEVICE=cpu tries it all on a CPU). JOBS runs go on at the same time: with more of them all are
# done earlier, with fewer the first.
set -uo pipefail
: "${CIFAR10:?name the folder with CIFAR-10: make gpu CIFAR10=... CIFAR100=...}"
: "${CIFAR100:?name the folder with CIFAR-100: make gpu CIFAR10=... CIFAR100=...}"
cd "$(dirname "$0")/.."
bin=.venv/bin output=${OUTPUT:-runs/gpu}
options=(--device "${DEVICE:-cuda}" ${EPOCHS:+--epochs "$EPOCHS"})
[ "${DEVICE:-cuda}" = cpu ] || options+=(--compile)
mkdir -p "$output" && : >"$output/failed.txt"

trap 'exit 130' INT # a step that is interrupted ends like one that fails, and the next would begin

step() { # step NAME COMMAND...: run it, keep what it prints
    echo "== $1"
    "${@:2}" 2>&1 | tee -i -a "$output/$1.log" || echo "$1" | tee -a "$output/failed.txt"
}

table() { # table NAME NUMBER DATA COLUMN SEEDS RECIPE [OPTION...]
    step "$1" $bin/rdpnet table "$2" "$3" -o "$output/$1" --column "$4" --seeds $5 --jobs "${JOBS:-4}" --recipe "$6" \
        "${@:7}" "${options[@]}"
    $bin/rdpnet table "$2" --print -o "$output/$1" --column "$4" >"$output/$1.part" &&
        mv "$output/$1".{part,md} || rm -f "$output/$1.part"
}

# what an accelerator computes is what a CPU computes
step checks env RDPNET_TEST_DEVICE="${DEVICE:-cuda}" $bin/python -m pytest -n 0 -q tests/test_accelerator.py

# the paper's Table 3, both data sets, the narrow networks first; the weights are left in the folders of the runs
for rows in 2 6; do
    for recipe in ours paper; do
        table "table3_cifar10_$recipe" 3 "$CIFAR10" "CIFAR-10 %" 0 $recipe --rows $rows
        table "table3_cifar100_$recipe" 3 "$CIFAR100" "CIFAR-100 %" 0 $recipe --rows $rows
    done
done

# the paper's ablation
table table8 8 "$CIFAR100" "CIFAR-100 %" "${SEEDS:-0 1 2}" paper

if [ -s "$output/failed.txt" ]; then
    echo "failed: $(tr '\n' ' ' <"$output/failed.txt"); the same command tries again"
    exit 1
fi
