#!/usr/bin/env bash
# Tables of a run whose seeds or methods were made on several machines. FOLDER holds params.yaml of the whole run and the
# parts, *.tar.xz, each a results/ folder of one machine without arrays and weights:
#     find results -name '*.json' -o -name history.csv | sort | tar -cJf FOLDER/part.tar.xz -T -
# The rules make the tables of what the parts hold, in a folder of their own: nothing here is taken over. Where curves were
# probed for fewer seeds or methods than the tables have, curve.yaml beside params.yaml says for which.
set -euo pipefail
stop() {
    echo "merge: $1" >&2
    exit 2
}
[ $# = 1 ] && [ -d "$1" ] || stop "no folder '${1:-}'. Name the one that holds params.yaml and the parts."
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shopt -s nullglob
parts=("$folder"/*.tar.xz)
[ -f "$folder/params.yaml" ] || stop "no params.yaml in $folder. Put the parameters of the whole run there."
[ ${#parts[@]} -gt 0 ] || stop "no part in $folder, a file *.tar.xz. The head of $0 says how to make one."

cp "$folder/params.yaml" "$work"
for part in "${parts[@]}"; do
    mkdir -p "$work/part/results"
    # What a part has of its own: its diffusion model, what is computed over its own seeds, pictures.
    tar -xf "$part" -C "$work/part" --exclude=results/{diffusion,metrics.json,generation} ||
        stop "$part cannot be read: copy it again."
    # What two parts have, such as the facts about the data, must be the same in both.
    while read -r file; do
        [ ! -e "$work/$file" ] || cmp -s "$work/$file" "$work/part/$file" ||
            stop "$file in $(basename "$part") is not that of the parts before it: same data sets, same results."
    done < <(cd "$work/part" && find results -type f)
    cp -r "$work/part/results" "$work"
    rm -r "$work/part"
done

make() { # targets, by the rules that need no arrays
    DIFFSIAM_RESTORE=1 snakemake --snakefile "$here/Snakefile" --directory "$work" --cores 1 --quiet host progress rules reason \
        --allowed-rules tables table4_1 table4_2 summary curve "${options[@]}" -- "$@" >&2 ||
        stop "no ${*: -1}: see above. Where files are missing, a part is, or params.yaml has seeds or methods that no part has."
}
options=()
make results/table4_1.csv results/table4_2.csv results/summary.md
if [ -d "$work/results/curve" ]; then
    [ ! -f "$folder/curve.yaml" ] || options=(--configfile "$folder/curve.yaml")
    make results/curve.csv
fi
for made in "$work"/results/{table4_*,summary.md,paired.csv,paired.png,curve.csv,curve.png}; do
    [ -f "$made" ] || continue
    cp "$made" "$folder/.merge"
    mv "$folder/.merge" "$folder/$(basename "$made")"
done
