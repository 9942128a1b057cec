# Data sets whose attributes, if figures ask for any, come from a table.
PSEUDO_LABELLED = [row.name for row in sources.DATASETS.values() if row.pseudo_labels]
PSEUDO_LABELLED = {row["dataset"] for row in config["probmask"]["attributes"]} & set(PSEUDO_LABELLED)


rule data:
    input:
        attributes=lambda w: [f"results/attributes/{w.dataset}.csv"] if w.dataset in PSEUDO_LABELLED else [],
    output:
        expand(f"{DATA}/{{kind}}_{{part}}.npy", kind=["images", "labels", "attributes", "targets"], part=["train", "test"], allow_missing=True),
        meta=f"{DATA}/meta.json",
    params:
        own=own("data"),
        code=digest.digest("data"),
        seen=lambda w: data_seen(w.dataset),
        attributes=lambda w, input: f"--attributes {input.attributes[0]}" if input.attributes else "",
    log:
        "results/logs/data/{dataset}.log",
    benchmark:
        "results/timings/data/{dataset}.tsv"
    resources:
        mem_mb=4000,
        runtime=240,
    shell:
        "diffsiam data {wildcards.dataset} --out $(dirname {output.meta}) {params.attributes} "
        "--params {params.own:q} 2>&1 | tee {log}"
