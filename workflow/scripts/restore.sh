#!/usr/bin/env bash
# Take over results that are there without Snakemake's records: where DVC says that they belong to the params and the
# code of this checkout, Snakemake writes the records anew, and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
# All stages but the one that looks at the sources, which is always to be run.
mapfile -t stages < <(dvc stage list --name-only | grep --invert-match --line-regexp sources)
# With an empty folder for its memory, DVC reads every file again.
if ! DVC_SITE_CACHE_DIR=$state dvc status --quiet "${stages[@]}"; then
    { dvc status "${stages[@]}" && dvc params diff; } >&2 || true
    cat >&2 <<'MESSAGE'
restore: refused. To take these files over would declare them the results of params and code that did not make them
(the changes are above). Undo the edits (`git diff` shows them) and fetch what is missing (`dvc pull`), then run
`make restore` again; or delete the files that have no record, and the next run makes them anew.
MESSAGE
    exit 2
fi
mapfile -t factors < <(printf '%s\n' "${stages[@]}" | grep '^disentanglement@')
DIFFSIAM_RESTORE=1 snakemake all attributes_tables "${factors[@]}" --cores all --touch --forceall --quiet all
